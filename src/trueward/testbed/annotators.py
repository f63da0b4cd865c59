"""Simulated annotators: Bradley-Terry choice on the true reward, with a bias for length and noise of their
own.

P(prefers a over b) = sigmoid((u(a) - u(b)) / temperature), u = gold + length bias x tokens (Bradley & Terry
1952).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ANNOTATORS", "Annotator", "choice_probability", "choose"]


@dataclass(frozen=True, slots=True)
class Annotator:
    """Habits of one simulated annotator.

    Attributes:
        name: identifier in `meta.annotator`.
        temperature: in units of the true reward; higher is noisier.
        length_bias: reward that one more token seems worth.
        lapse: probability of choosing at random.
    """

    name: str
    temperature: float
    length_bias: float
    lapse: float


ANNOTATORS: Sequence[Annotator] = (
    Annotator("sim-1", 0.20, 0.02, 0.00),
    Annotator("sim-2", 0.25, 0.02, 0.02),
    Annotator("sim-3", 0.25, 0.03, 0.02),
    Annotator("sim-4", 0.30, 0.03, 0.04),
    Annotator("sim-5", 0.25, 0.01, 0.04),
)


def choice_probability(annotator: Annotator, golds: tuple[float, float], lengths: tuple[int, int]) -> float:
    """Probability that `annotator` prefers the first of two replies.

    Args:
        golds: true rewards of the two.
        lengths: their lengths in tokens.
    """
    advantage = golds[0] - golds[1] + annotator.length_bias * (lengths[0] - lengths[1])
    p = 1.0 / (1.0 + math.exp(-advantage / annotator.temperature))
    return annotator.lapse * 0.5 + (1.0 - annotator.lapse) * p


def choose(
    annotator: Annotator, golds: tuple[float, float], lengths: tuple[int, int], rng: np.random.Generator
) -> bool:
    """Whether the first reply is preferred, drawn once."""
    return bool(rng.random() < choice_probability(annotator, golds, lengths))
