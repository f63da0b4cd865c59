"""What a verifier is asked and what it answers: a score, or an error that is never mistaken for a score.

Not here: any verifier, any model. No torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

__all__ = ["Case", "Failure", "Verdict", "Verifier", "failed", "scored"]

Failure = Literal["raised", "timed out"]


class Case(NamedTuple):
    """One completion to judge."""

    completion: str
    """Decoded text, without special tokens."""
    answer: str
    """What the data says is right: a number, a text, or the tests of a program; empty where nothing is."""
    prompt: str = ""
    """What the user asked last."""


class Verdict(NamedTuple):
    """A score, or why there is none: exactly one of `score` and `error` is set."""

    score: float | None
    error: Failure | None = None
    detail: str = ""
    """What happened, for the reader of samples; never parsed."""


Verifier = Callable[[Sequence[Case]], list[Verdict]]
"""Verdicts of cases, in their order."""


def scored(score: float, detail: str = "") -> Verdict:
    """A verdict with a score; one that is not finite is an error, as no training step can use it."""
    if not math.isfinite(score):
        return failed("raised", f"the score is {score}")
    return Verdict(float(score), None, detail)


def failed(error: Failure, detail: str) -> Verdict:
    """A verdict without a score."""
    return Verdict(None, error, detail)
