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
    target_B: list[float],
    center: float,
) -> list[float]:
    """Cross-entropy of the label against the model's preference, each side less its margin."""
    losses = []
    for chosen, rejected, margin, label in zip(chosen_B, rejected_B, margin_B, target_B, strict=True):
        chosen_wins = math.log(probability(chosen - margin, rejected))
        rejected_wins = math.log(probability(rejected - margin, chosen))
        cross_entropy = -(label * chosen_wins + (1 - label) * rejected_wins)
        losses.append(cross_entropy + center * (chosen + rejected) ** 2)
    return losses


def plackett_luce(rewards_K: list[float], ranks_K: list[int]) -> float:
    """Plackett 1975: product over places of exp(r) over the sum of exp(r) of those not yet placed."""
    left = sorted(range(len(rewards_K)), key=lambda i: ranks_K[i])
    likelihood = 1.0
    while left:
        likelihood *= math.exp(rewards_K[left[0]]) / sum(math.exp(rewards_K[i]) for i in left)
        left.pop(0)
    return -math.log(likelihood)


def ranking_pairs(rewards_K: list[float], ranks_K: list[int]) -> float:
    """Ouyang et al. 2022, eq. 1, for one prompt; tied completions make no pair."""
    losses = []
    for w, winner in enumerate(rewards_K):
        for other, loser in enumerate(rewards_K):
            if ranks_K[w] < ranks_K[other]:
                losses.append(-math.log(probability(winner, loser)))
    return sum(losses) / len(losses)


def rao_kupper(chosen: float, rejected: float, tie: bool, theta: float) -> float:
    """Rao & Kupper 1967, with worths exp(r); a tie is what is left."""
    chosen, rejected = math.exp(chosen), math.exp(rejected)
    wins, loses = chosen / (chosen + theta * rejected), rejected / (rejected + theta * chosen)
    return -math.log(1 - wins - loses if tie else wins)


def davidson(chosen: float, rejected: float, tie: bool, nu: float) -> float:
    """Davidson 1970, with worths exp(r)."""
    chosen, rejected = math.exp(chosen), math.exp(rejected)
    middle = nu * math.sqrt(chosen * rejected)
    return -math.log((middle if tie else chosen) / (chosen + rejected + middle))
