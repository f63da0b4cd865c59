"""Win rates: two models answer the same prompts and a judge says which answer is better, asked in both
orders.

A judge is anything with a name and `compare`; a reward model, a gold reward or a word baseline becomes one
through `ScoreJudge`. An empty answer loses without the judge being asked, and is counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trueward.core.errors import EvidenceError
from trueward.core.stats import Estimate, bootstrap_mean

__all__ = ["Judge", "ScoreJudge", "WinRate", "win_rate_report"]


class Judge(Protocol):
    """Says which of two answers to a prompt is better."""

    @property
    def name(self) -> str: ...
    def compare(self, prompt: str, first: str, second: str) -> float:
        """1 if `first` is better, 0 if `second` is, 0.5 for a tie."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJudge:
    """A judge that prefers the answer with the higher score."""

    name: str
    score: Callable[[str, str], float]
    """(prompt, completion) -> score; called again for each comparison, so cache it where it is dear."""

    def compare(self, prompt: str, first: str, second: str) -> float:
        """1, 0.5 or 0.

        Raises:
            EvidenceError: a score is not a number.
        """
        a, b = self.score(prompt, first), self.score(prompt, second)
        if math.isnan(a) or math.isnan(b):
            raise EvidenceError(f"judge {self.name!r} gave a score that is not a number", value=(a, b))
        return 0.5 if a == b else float(a > b)


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """How often the first model's answers beat the second's."""

    judge: str
    estimate: Estimate
    """Mean outcome over prompts; a tie counts half."""
    inconsistent: float
    """Share of the judged prompts where the judge's answer changed with the order, in [0, 1]."""
    ties: float
    """Share of all prompts with outcome 0.5, in [0, 1]."""
    empty_first: int
    """Empty answers of the first model: lost, unless the other is empty too."""
    empty_second: int
    outcomes: tuple[float, ...]
    """For each prompt 1, 0.75, 0.5, 0.25 or 0: the mean of both orders."""


def _asked(judge: Judge, prompt: str, first: str, second: str) -> float:
    answer = judge.compare(prompt, first, second)
    if answer not in (0.0, 0.5, 1.0):
        raise EvidenceError(f"judge {judge.name!r} gave no verdict", value=answer, expected="1, 0.5 or 0")
    return float(answer)


def win_rate_report(
    judge: Judge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], *, seed: int = 0
) -> WinRate:
    """Compare two models' answers to the same prompts.

    Each pair is shown in both orders and the two answers are averaged, so that a judge who always prefers the
    first place gives 0.5 and is seen in `inconsistent`.

    Args:
        judge: asked twice for each prompt where neither answer is empty.
        prompts: the prompts as text.
        first: the first model's answers, same order. An answer of white space alone is empty.
        second: the second model's answers, same order.
        seed: of the bootstrap over prompts.

    Raises:
        EvidenceError: no prompts, counts that differ, or a verdict that is not 1, 0.5 or 0.

    Source:
        Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4 (position
        bias).
    """
    if not len(prompts) == len(first) == len(second) or not prompts:
        raise EvidenceError(
            "prompts and answers must be as many, and at least one",
            value=(len(prompts), len(first), len(second)),
        )
    outcomes: list[float] = []
    judged = changed = 0
    for prompt, a, b in zip(prompts, first, second, strict=True):
        if not a.strip() or not b.strip():
            outcomes.append(0.5 + 0.5 * bool(a.strip()) - 0.5 * bool(b.strip()))
            continue
        forward, backward = _asked(judge, prompt, a, b), 1 - _asked(judge, prompt, b, a)
        judged += 1
        changed += forward != backward
        outcomes.append((forward + backward) / 2)
    return WinRate(
        judge=judge.name,
        estimate=bootstrap_mean(outcomes, seed=seed),
        inconsistent=changed / judged if judged else 0.0,
        ties=sum(outcome == 0.5 for outcome in outcomes) / len(outcomes),
        empty_first=sum(not answer.strip() for answer in first),
        empty_second=sum(not answer.strip() for answer in second),
        outcomes=tuple(outcomes),
    )
