"""Oracles: Dai et al. 2023 (Safe RLHF), eq. 30 (mixed objective) and eq. 31 (update of the multiplier)."""

import math


def advantage(reward: float, cost: float, log_lambda: float) -> float:
    """(A_reward - lambda A_cost) / (1 + lambda)."""
    lam = math.exp(log_lambda)
    return (reward - lam * cost) / (1 + lam)


def update(log_lambda: float, mean_cost: float, threshold: float, lr: float) -> float:
    """ln lambda + alpha lambda J_C, with J_C = mean cost - threshold."""
    return log_lambda + lr * math.exp(log_lambda) * (mean_cost - threshold)
