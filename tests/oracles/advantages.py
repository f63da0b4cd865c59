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


def group_relative(rewards_PG: list[list[float]], scaled: bool) -> list[list[float]]:
    """r - mean of the group, over (standard deviation with n - 1) + 1e-4 where scaled."""
    out = []
    for group in rewards_PG:
        mean = math.fsum(group) / len(group)
        variance = math.fsum((reward - mean) ** 2 for reward in group) / (len(group) - 1)
        divisor = math.sqrt(variance) + 1e-4 if scaled else 1.0
        out.append([(reward - mean) / divisor for reward in group])
    return out


def leave_one_out(rewards_PG: list[list[float]]) -> list[list[float]]:
    """r_i - mean of the rewards j != i of the group."""
    out = []
    for group in rewards_PG:
        others = [[r for j, r in enumerate(group) if j != i] for i in range(len(group))]
        out.append([group[i] - math.fsum(rest) / len(rest) for i, rest in enumerate(others)])
    return out


def reinforce_plus_plus(
    scores_B: list[float], kl_BT: list[list[float]], lengths_B: list[int], beta: float
) -> list[list[float]]:
    """A_t = R - beta sum_{i >= t} kl_i over the completion's tokens, then whitened over all of them."""
    returns = []
    for score, kl_T, length in zip(scores_B, kl_BT, lengths_B, strict=True):
        returns += [score - beta * math.fsum(kl_T[t:length]) for t in range(length)]
    flat = iter(whiten(returns, True))
    return [[next(flat) for _ in range(length)] for length in lengths_B]
