"""Objectives for reward models from rankings of K completions of one prompt.

Import them from `trueward.objectives.reward_model`. Not here: the mean over prompts.
Axes: B prompts, K completions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


class RankingLoss(NamedTuple):
    """Unreduced loss, with the share of ordered pairs that the rewards order alike (ties of rewards half), no
    gradient."""

    loss_B: Tensor
    accuracies_B: Tensor


def plackett_luce(rewards_BK: Tensor, ranks_BK: Tensor) -> RankingLoss:
    """Negative log-likelihood of a ranking: pick the best by softmax, then the best of the rest, and so on.

    -sum_k (r_(k) - logsumexp_{j >= k} r_(j)), with (k) the completion of k-th best rank. K = 2 is
    Bradley-Terry.

    Args:
        rewards_BK: reward of each completion, K >= 2.
        ranks_BK: integers, LOWEST IS BEST, no two alike in a row; only their order counts.

    Returns:
        RankingLoss, float32 or better, in nats.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, K < 2, or a row has ties (use `ranking_pairs` for those).

    Source:
        Plackett 1975, "The analysis of permutations"; Luce 1959, "Individual choice behavior". As a reward
        objective: Rafailov et al. 2023 (arXiv:2305.18290), eq. 18.
    """
    rewards_BK = _checked(rewards_BK, ranks_BK)
    order_BK = ranks_BK.argsort(dim=1)
    ranked_BK = ranks_BK.gather(1, order_BK)
    tied_B = (ranked_BK[:, 1:] == ranked_BK[:, :-1]).any(dim=1)
    if bool(tied_B.any()):
        raise ValueError(f"ranks_BK must differ within a row, row {int(tied_B.nonzero()[0])} has a tie")
    best_first_BK = rewards_BK.gather(1, order_BK)
    num_completions = rewards_BK.shape[1]
    left_KK = torch.ones(num_completions, num_completions, device=rewards_BK.device).triu().bool()
    left_BKK = torch.where(left_KK, best_first_BK.unsqueeze(1), -torch.inf)
    loss_B = (left_BKK.logsumexp(dim=2) - best_first_BK).sum(dim=1)
    return RankingLoss(loss_B, _accuracies(rewards_BK, ranks_BK))


def ranking_pairs(rewards_BK: Tensor, ranks_BK: Tensor) -> RankingLoss:
    """Bradley-Terry over all pairs of a ranking, averaged within the prompt.

    -(1 / pairs) sum over pairs with rank(w) < rank(l) of log sigmoid(r_w - r_l); pairs = C(K, 2) without
    ties. Averaging gives each prompt weight 1, however many pairs it makes.

    Args:
        rewards_BK: reward of each completion, K >= 2.
        ranks_BK: integers, LOWEST IS BEST; tied completions make no pair.

    Returns:
        RankingLoss, float32 or better, in nats.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, K < 2, or a row is one tie.

    Source:
        Ouyang et al. 2022 (InstructGPT, arXiv:2203.02155), eq. 1.
    """
    rewards_BK = _checked(rewards_BK, ranks_BK)
    better_BKK = ranks_BK.unsqueeze(2) < ranks_BK.unsqueeze(1)
    count_B = better_BKK.sum(dim=(1, 2))
    if not bool((count_B > 0).all()):
        row = int((count_B == 0).nonzero()[0])
        raise ValueError(f"every row of ranks_BK needs two different ranks, row {row} is one tie")
    margins_BKK = rewards_BK.unsqueeze(2) - rewards_BK.unsqueeze(1)
    losses_BKK = torch.where(better_BKK, -logsigmoid(margins_BKK), 0.0)
    return RankingLoss(losses_BKK.sum(dim=(1, 2)) / count_B, _accuracies(rewards_BK, ranks_BK))


def _accuracies(rewards_BK: Tensor, ranks_BK: Tensor) -> Tensor:
    rewards_BK = rewards_BK.detach()
    better_BKK = ranks_BK.unsqueeze(2) < ranks_BK.unsqueeze(1)
    signs_BKK = torch.sign(rewards_BK.unsqueeze(2) - rewards_BK.unsqueeze(1))
    right_B = torch.where(better_BKK, 0.5 + 0.5 * signs_BKK, 0.0).sum(dim=(1, 2))
    return right_B / better_BKK.sum(dim=(1, 2))


def _checked(rewards_BK: Tensor, ranks_BK: Tensor) -> Tensor:
    rewards_BK = _checks.full_precision("rewards_BK", rewards_BK, ndim=2)
    if not isinstance(ranks_BK, Tensor):
        raise TypeError(f"ranks_BK must be a torch.Tensor, got {type(ranks_BK).__name__}")
    if ranks_BK.dtype not in _INTEGERS:
        raise TypeError(f"ranks_BK must be integers, got {ranks_BK.dtype}")
    _checks.same_shape("ranks_BK", ranks_BK, "rewards_BK", rewards_BK)
    if rewards_BK.shape[1] < 2:
        raise ValueError(f"a ranking needs two completions or more, got shape {tuple(rewards_BK.shape)}")
    return rewards_BK
