"""Verifiers that look at the text itself: exact, regex, format, length.

Patterns come from the recipe but run over completions, and some patterns take exponential time on some texts;
so they run in a worker process with a time limit (see worker).
"""

import re
from collections.abc import Sequence

from trueward.rewards.verdict import Case, Verdict, failed, scored
from trueward.rewards.worker import call_many

__all__ = ["exact", "has_form", "length", "matches", "pattern_verifier"]


def exact(cases: Sequence[Case]) -> list[Verdict]:
    """1 where the completion is the reference but for white space, else 0; an empty reference is an error."""
    return [_exact(case) for case in cases]


def _exact(case: Case) -> Verdict:
    expected = case.answer.split()
    if not expected:
        return failed("raised", "the reference is empty")
    return scored(float(case.completion.split() == expected))


def length(cases: Sequence[Case], *, min_words: int, max_words: int | None) -> list[Verdict]:
    """1 where the completion has at least `min_words` and at most `max_words` words, else 0."""
    counts = [len(case.completion.split()) for case in cases]
    return [
        scored(float(min_words <= n and (max_words is None or n <= max_words)), f"{n} words") for n in counts
    ]


def matches(pattern: str, completion: str, answer: str) -> float:
    """Whether the pattern is found; where it has a group, whether the last one found holds the reference.

    The reference is what the pattern finds in it, where it does (a whole solution, such as GSM8K's), else all
    of it.

    Raises:
        ValueError: the pattern has a group, and the reference is empty.
    """
    wanted = re.compile(pattern, flags=re.DOTALL)
    found, stated = _last_group(wanted, completion), _last_group(wanted, answer)
    if not wanted.groups:
        return float(found is not None)
    expected = (answer if stated is None else stated).split()
    if not expected:
        raise ValueError("the reference is empty")
    return float(found is not None and found.split() == expected)


def _last_group(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group where the pattern is found last (empty without groups); None if it is nowhere."""
    found = list(pattern.finditer(text))
    if not found:
        return None
    return (found[-1].group(1) or "") if pattern.groups else ""


def has_form(pattern: str, completion: str, answer: str) -> float:
    """Whether the whole completion, white space around it aside, is of the form of the pattern."""
    return float(re.fullmatch(pattern, completion.strip(), flags=re.DOTALL) is not None)


def pattern_verifier(cases: Sequence[Case], *, function: str, pattern: str, time_s: float) -> list[Verdict]:
    """`matches` or `has_form` in a worker process.

    Args:
        function: name of the one or the other.
        time_s: limit for one completion.
    """
    arguments = [(pattern, case.completion, case.answer) for case in cases]
    return call_many(f"{__name__}:{function}", arguments, time_s=time_s)
