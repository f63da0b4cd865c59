"""Oracles: process and outcome reward models from probabilities of the steps, one step at a time."""

import math

from tests.oracles.logprobs import softmax


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-x))


def binary(logit: float, label: float) -> float:
    """Cross-entropy of the label's probability, -y log p - (1 - y) log(1 - p)."""
    p = sigmoid(logit)
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def classes(logits_C: list[float], label: int) -> float:
    """-log p of the labelled class."""
    return -math.log(softmax(logits_C)[label])


def correct(logits_C: list[float], neutral_is_correct: bool) -> float:
    """Probability of a right step: positive, or neutral or positive."""
    negative, neutral, positive = softmax(logits_C)
    assert abs(negative + neutral + positive - 1) < 1e-12
    return positive + (neutral if neutral_is_correct else 0.0)
