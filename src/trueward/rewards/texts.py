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
    """Whether the pattern is found; where it has a group, whether the last one found holds the reference."""
    found = list(re.finditer(pattern, completion, flags=re.DOTALL))
    if not found:
        return 0.0
    if not found[-1].re.groups:
        return 1.0
    return float((found[-1].group(1) or "").split() == answer.split())


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
