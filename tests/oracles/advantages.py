"""Oracles: Schulman et al. 2016, eq. 16, as the double sum it is (O(T^2)); rewards per token; whitening."""

import math


def gae(
    rewards_BT: list[list[float]],
    values_BT: list[list[float]],
    lengths_B: list[int],
    gamma: float,
    lam: float,
) -> list[list[float]]:
    """A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l})), V = 0 after the last token."""
    out = [[0.0] * len(row) for row in rewards_BT]
    for b, length in enumerate(lengths_B):
        values = [*values_BT[b][:length], 0.0]
        for t in range(length):
            terms = []
            for step in range(length - t):
                delta = rewards_BT[b][t + step] + gamma * values[t + step + 1] - values[t + step]
                terms.append((gamma * lam) ** step * delta)
            out[b][t] = math.fsum(terms)
    return out


def token_rewards(
    scores_B: list[float], kl_BT: list[list[float]], lengths_B: list[int], beta: float
) -> list[list[float]]:
    """-beta KL at each token, and the score where the completion ends."""
    out = [[0.0] * len(row) for row in kl_BT]
    for b, length in enumerate(lengths_B):
        for t in range(length):
            out[b][t] = -beta * kl_BT[b][t]
        out[b][length - 1] += scores_B[b]
    return out


def whiten(values: list[float], shift_mean: bool) -> list[float]:
    """(x - mean) / sqrt(variance + 1e-8), over a flat list; the mean is added back unless shifted."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    kept = 0.0 if shift_mean else mean
    return [(value - mean) / math.sqrt(variance + 1e-8) + kept for value in values]
