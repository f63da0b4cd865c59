"""Oracles: importance weights of the drawn tokens, from probabilities, in loops over tokens."""

import math


def ratios(trainer_T: list[float], sampler_T: list[float], level: str) -> list[float]:
    """pi_trainer / pi_sampler of each token, or for every token that of the whole completion."""
    token_T = [math.exp(a) / math.exp(b) for a, b in zip(trainer_T, sampler_T, strict=True)]
    return [math.prod(token_T)] * len(token_T) if level == "sequence" else token_T


def truncated(ratio: float, cap: float) -> float:
    """Ionides 2008: min(w, cap)."""
    return min(ratio, cap)


def masked(ratio: float, low: float, high: float) -> float:
    """IcePop, 2510.18855: w inside [low, high], 0 outside."""
    return ratio if low <= ratio <= high else 0.0
