"""Objectives for reward models from pairs: Bradley-Terry with margin, soft targets and centering, and ties.

Rankings of more than two are in `ranking`, and can be imported from here. Not here: reading the reward at the
last real token (the model's head does), and the mean over pairs. Axes: B pairs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives.ranking import RankingLoss, plackett_luce, ranking_pairs

__all__ = [
    "BradleyTerryLoss",
    "RankingLoss",
    "TiesLoss",
    "accuracy",
    "bradley_terry",
    "davidson",
    "plackett_luce",
    "rao_kupper",
    "ranking_pairs",
]


class BradleyTerryLoss(NamedTuple):
    """Unreduced loss, with two quantities for reporting that carry no gradient.

    accuracies_B: 1 where chosen is rewarded strictly more, 0.5 at equality, 0 where less.
    margins_B: chosen minus rejected reward, without the margin term.
    """

    loss_B: Tensor
    accuracies_B: Tensor
    margins_B: Tensor


class TiesLoss(NamedTuple):
    """Unreduced loss; margins_B is first minus second reward, without gradient."""

    loss_B: Tensor
    margins_B: Tensor


def accuracy(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Whether chosen scores strictly above rejected: 1, 0.5 at exact equality, 0 below; nan if either is nan.

    A tie counts half, so a model that cannot tell two completions apart shows 0.5 and not 0 or 1.

    Args:
        chosen_B: scores of the preferred completions, one axis.
        rejected_B: scores of the others, same shape.

    Returns:
        accuracies_B in {0, 0.5, 1}, float32 or better, no gradient.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes disagree.
    """
    chosen_B = _checks.full_precision("chosen_B", chosen_B, ndim=1)
    rejected_B = _checks.full_precision("rejected_B", rejected_B, ndim=1)
    _checks.same_shape("rejected_B", rejected_B, "chosen_B", chosen_B)
    order_B = (chosen_B > rejected_B).to(chosen_B.dtype) - (chosen_B < rejected_B).to(chosen_B.dtype)
    unknown_B = chosen_B.isnan() | rejected_B.isnan()
    return torch.where(unknown_B, torch.nan, 0.5 + 0.5 * order_B)


def bradley_terry(
    chosen_rewards_B: Tensor,
    rejected_rewards_B: Tensor,
    *,
    margin_B: Tensor | None = None,
    target_B: Tensor | None = None,
    center: float = 0.0,
) -> BradleyTerryLoss:
    """Negative log-likelihood of the preferences under sigmoid(r_chosen - r_rejected).

    With target s, margin m and d = r_c - r_r:
    -s log sigmoid(d - m) - (1 - s) log sigmoid(-d - m) + center (r_c + r_r)^2.
    The papers have m or s, not both; written this way the loss stays the same when the two completions change
    places and s becomes 1 - s.

    Args:
        chosen_rewards_B: reward of the preferred completion of each pair.
        rejected_rewards_B: reward of the other, same shape.
        margin_B: finite margin >= 0 by which the preferred should win, in reward units; None is 0.
        target_B: probability in [0, 1] that chosen is preferred, 0.5 is a tie; None is 1.
        center: coefficient >= 0 of (r_c + r_r)^2, which keeps the free offset of the rewards near 0.

    Returns:
        BradleyTerryLoss, float32 or better. Accuracy compares chosen with rejected, whatever the target says.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or margin or label require grad.

    Source:
        Christiano et al. 2017, section 2.2.3; Ouyang et al. 2022, eq. 1 (without its 1/(K choose 2), which
        belongs to the reduction). Margin: Touvron et al. 2023 (Llama 2), eq. 2. Centering: Eisenstein et al.
        2023, as in TRL.
    """
    chosen_B = _checks.full_precision("chosen_rewards_B", chosen_rewards_B, ndim=1)
    rejected_B = _checks.full_precision("rejected_rewards_B", rejected_rewards_B, ndim=1)
    _checks.same_shape("rejected_rewards_B", rejected_B, "chosen_rewards_B", chosen_B)
    _checks.number("center", center, low=0.0)
    margins_B = chosen_B - rejected_B
    margin = torch.zeros_like(chosen_B)
    if margin_B is not None:
        margin = _checked_constant("margin_B", margin_B, chosen_B)
        _checks.all_between("margin_B", margin, low=0.0)
    # logsigmoid, not log(sigmoid): the latter is -inf below about -88 in float32 and has no gradient there.
    loss_B = -logsigmoid(margins_B - margin)
    if target_B is not None:
        label_B = _checked_constant("target_B", target_B, chosen_B)
        _checks.all_between("target_B", label_B, low=0.0, high=1.0)
        loss_B = label_B * loss_B - (1 - label_B) * logsigmoid(-margins_B - margin)
    if center > 0:
        loss_B = loss_B + center * (chosen_B + rejected_B).square()
    return BradleyTerryLoss(loss_B, accuracy(chosen_B, rejected_B), margins_B.detach())


def rao_kupper(
    chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, tie_B: Tensor, *, theta: float
) -> TiesLoss:
    """Bradley-Terry with ties by a threshold: chosen wins where it leads by more than log(theta).

    With d = r_c - r_r: log P(chosen) = log sigmoid(d - log theta), and log P(tie) = log(theta^2 - 1) +
    log sigmoid(d - log theta) + log sigmoid(-d - log theta).

    Args:
        chosen_rewards_B: reward of the preferred completion, or of either where they tie.
        rejected_rewards_B: reward of the other, same shape.
        tie_B: bool, True = judged equal.
        theta: > 1; at 1 nothing could tie. Two equal rewards tie with probability (theta - 1) / (theta + 1).

    Returns:
        TiesLoss, float32 or better, negative log-likelihood in nats.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree or a range is left.

    Source:
        Rao & Kupper 1967, "Ties in paired-comparison experiments: a generalization of the Bradley-Terry
        model".
    """
    _checks.number("theta", theta, low=1.0, above=True)
    margins_B = _margins(chosen_rewards_B, rejected_rewards_B, tie_B)
    wins_B = logsigmoid(margins_B - math.log(theta))
    ties_B = math.log(theta - 1) + math.log(theta + 1) + wins_B + logsigmoid(-margins_B - math.log(theta))
    return TiesLoss(-torch.where(tie_B, ties_B, wins_B), margins_B.detach())


def davidson(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, tie_B: Tensor, *, nu: float) -> TiesLoss:
    """Bradley-Terry with ties in proportion to the geometric mean: chosen : rejected : tie = e^(d/2) :
    e^(-d/2) : nu.

    Args:
        chosen_rewards_B: reward of the preferred completion, or of either where they tie.
        rejected_rewards_B: reward of the other, same shape.
        tie_B: bool, True = judged equal.
        nu: > 0; two equal rewards tie with probability nu / (2 + nu).

    Returns:
        TiesLoss, float32 or better, negative log-likelihood in nats.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree or a range is left.

    Source:
        Davidson 1970, "On extending the Bradley-Terry model to accommodate ties in paired comparison
        experiments".
    """
    _checks.number("nu", nu, low=0.0, above=True)
    margins_B = _margins(chosen_rewards_B, rejected_rewards_B, tie_B)
    ties_B = torch.full_like(margins_B, math.log(nu))
    logps_B3 = torch.stack([margins_B / 2, -margins_B / 2, ties_B], dim=1).log_softmax(dim=1)
    return TiesLoss(-torch.where(tie_B, logps_B3[:, 2], logps_B3[:, 0]), margins_B.detach())


def _margins(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, tie_B: Tensor) -> Tensor:
    chosen_B = _checks.full_precision("chosen_rewards_B", chosen_rewards_B, ndim=1)
    rejected_B = _checks.full_precision("rejected_rewards_B", rejected_rewards_B, ndim=1)
    _checks.same_shape("rejected_rewards_B", rejected_B, "chosen_rewards_B", chosen_B)
    _checks.bool_mask("tie_B", tie_B, "chosen_rewards_B", chosen_B)
    return chosen_B - rejected_B


def _checked_constant(name: str, tensor_B: Tensor, like_B: Tensor) -> Tensor:
    tensor_B = _checks.full_precision(name, tensor_B, ndim=1)
    _checks.same_shape(name, tensor_B, "chosen_rewards_B", like_B)
    _checks.constant(name, tensor_B)
    return tensor_B
