"""Oracles of KTO (Ethayarajh et al. 2024, eq. 7 and 8) and BCO (Jung et al. 2024), one by one."""

import math


def kto(
    policy_B: list[float],
    ref_B: list[float],
    desirable_B: list[bool],
    kl: float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> list[float]:
    """lambda_y - v(x, y)."""
    losses = []
    for policy, ref, desirable in zip(policy_B, ref_B, desirable_B, strict=True):
        reward = math.log(math.exp(policy) / math.exp(ref))
        if desirable:
            losses.append(desirable_weight - desirable_weight / (1 + math.exp(-beta * (reward - kl))))
        else:
            losses.append(undesirable_weight - undesirable_weight / (1 + math.exp(-beta * (kl - reward))))
    return losses


def kto_kl(policy_B: list[float], ref_B: list[float]) -> float:
    """max(0, 1/m sum log(pi / pi_ref)) over mismatched pairs."""
    total = 0.0
    for policy, ref in zip(policy_B, ref_B, strict=True):
        total += math.log(math.exp(policy) / math.exp(ref))
    return max(0.0, total / len(policy_B))


def bco(
    policy_B: list[float],
    ref_B: list[float],
    desirable_B: list[bool],
    delta: float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> list[float]:
    """Cross-entropy of the label under sigmoid(reward - delta), weighted."""
    losses = []
    for policy, ref, desirable in zip(policy_B, ref_B, desirable_B, strict=True):
        reward = beta * math.log(math.exp(policy) / math.exp(ref))
        positive = math.exp(reward) / (math.exp(reward) + math.exp(delta))
        if desirable:
            losses.append(-desirable_weight * math.log(positive))
        else:
            losses.append(-undesirable_weight * math.log(1 - positive))
    return losses


def bco_delta(rewards_B: list[float], desirable_B: list[bool]) -> float:
    """(E[r | desirable] + E[r | undesirable]) / 2."""
    means = []
    for sort in (True, False):
        rewards = [r for r, label in zip(rewards_B, desirable_B, strict=True) if label is sort]
        means.append(sum(rewards) / len(rewards))
    return (means[0] + means[1]) / 2
