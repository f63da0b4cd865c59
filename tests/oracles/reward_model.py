"""Oracle: Christiano et al. 2017, section 2.2.3, cross-entropy of P(1 > 2) = exp(r1) / (exp(r1) + exp(r2)).

Margin as in Touvron et al. 2023, eq. 2: the preferred completion must win by the margin. Centering as in
Eisenstein et al. 2023: the squared sum of both rewards.
"""

import math


def probability(winner: float, loser: float) -> float:
    """P(winner preferred), from the two rewards."""
    return math.exp(winner) / (math.exp(winner) + math.exp(loser))


def bradley_terry(
    chosen_B: list[float],
    rejected_B: list[float],
    margin_B: list[float],
    soft_label_B: list[float],
    centering: float,
) -> list[float]:
    """Cross-entropy of the label against the model's preference, each side less its margin."""
    losses = []
    for chosen, rejected, margin, label in zip(chosen_B, rejected_B, margin_B, soft_label_B, strict=True):
        chosen_wins = math.log(probability(chosen - margin, rejected))
        rejected_wins = math.log(probability(rejected - margin, chosen))
        cross_entropy = -(label * chosen_wins + (1 - label) * rejected_wins)
        losses.append(cross_entropy + centering * (chosen + rejected) ** 2)
    return losses
