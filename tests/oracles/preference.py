"""Oracle: Rafailov et al. 2023, eq. 7 from the odds; implicit reward of eq. 5 without its constant."""

import math


def implicit_reward(policy_logp: float, ref_logp: float, beta: float) -> float:
    """beta log(pi(y|x) / pi_ref(y|x))."""
    return beta * math.log(math.exp(policy_logp) / math.exp(ref_logp))


def dpo(
    policy_chosen_B: list[float],
    policy_rejected_B: list[float],
    ref_chosen_B: list[float],
    ref_rejected_B: list[float],
    beta: float,
    label_smoothing: float,
) -> list[float]:
    """Cross-entropy of labels flipped with probability `label_smoothing` against the implied preference."""
    losses = []
    rows = zip(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, strict=True)
    for policy_w, policy_l, ref_w, ref_l in rows:
        odds = (math.exp(policy_w - ref_w) / math.exp(policy_l - ref_l)) ** beta
        preferred = odds / (1 + odds)
        losses.append(
            -(1 - label_smoothing) * math.log(preferred) - label_smoothing * math.log(1 - preferred)
        )
    return losses
