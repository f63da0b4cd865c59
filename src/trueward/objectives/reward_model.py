"""The Bradley-Terry objective for reward models, with margin, soft labels and centering.

Not here: reading the reward at the last real token (the model's head does), and the mean over pairs.
Axes: B pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks


class BradleyTerryLoss(NamedTuple):
    """Unreduced loss, with two quantities for reporting that carry no gradient.

    accuracies_B: 1 where chosen is rewarded strictly more, 0.5 at equality, 0 where less.
    margins_B: chosen minus rejected reward, without the margin term.
    """

    loss_B: Tensor
    accuracies_B: Tensor
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
    soft_label_B: Tensor | None = None,
    centering: float = 0.0,
) -> BradleyTerryLoss:
    """Negative log-likelihood of the preferences under sigmoid(r_chosen - r_rejected).

    With soft label s, margin m and d = r_c - r_r:
    -s log sigmoid(d - m) - (1 - s) log sigmoid(-d - m) + centering (r_c + r_r)^2.
    The papers have m or s, not both; written this way the loss stays the same when the two completions change
    places and s becomes 1 - s.

    Args:
        chosen_rewards_B: reward of the preferred completion of each pair.
        rejected_rewards_B: reward of the other, same shape.
        margin_B: finite margin >= 0 by which the preferred should win, in reward units; None is 0.
        soft_label_B: probability in [0, 1] that chosen is preferred, 0.5 is a tie; None is 1.
        centering: coefficient >= 0 of (r_c + r_r)^2, which keeps the free offset of the rewards near 0.

    Returns:
        BradleyTerryLoss, float32 or better. Accuracy compares chosen with rejected, whatever the soft label
        says.

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
    _checks.number("centering", centering, low=0.0)
    margins_B = chosen_B - rejected_B
    margin = torch.zeros_like(chosen_B)
    if margin_B is not None:
        margin = _checked_constant("margin_B", margin_B, chosen_B)
        _checks.all_between("margin_B", margin, low=0.0)
    # logsigmoid, not log(sigmoid): the latter is -inf below about -88 in float32 and has no gradient there.
    loss_B = -logsigmoid(margins_B - margin)
    if soft_label_B is not None:
        label_B = _checked_constant("soft_label_B", soft_label_B, chosen_B)
        _checks.all_between("soft_label_B", label_B, low=0.0, high=1.0)
        loss_B = label_B * loss_B - (1 - label_B) * logsigmoid(-margins_B - margin)
    if centering > 0:
        loss_B = loss_B + centering * (chosen_B + rejected_B).square()
    return BradleyTerryLoss(loss_B, accuracy(chosen_B, rejected_B), margins_B.detach())


def _checked_constant(name: str, tensor_B: Tensor, like_B: Tensor) -> Tensor:
    tensor_B = _checks.full_precision(name, tensor_B, ndim=1)
    _checks.same_shape(name, tensor_B, "chosen_rewards_B", like_B)
    _checks.constant(name, tensor_B)
    return tensor_B
