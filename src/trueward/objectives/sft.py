"""Supervised fine-tuning: the negative log-likelihood of demonstrated tokens, one value per token.

Not here: which tokens are trained on (the mask says so) and the mean over them (see reduce.token_mean).
Axes: B sequences, T tokens.
"""

from typing import NamedTuple

from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import zero_masked


class SFTLoss(NamedTuple):
    """Unreduced loss: -weight * log-prob at counted positions, 0 elsewhere."""

    loss_BT: Tensor


def sft(logps_BT: Tensor, mask_BT: Tensor, *, weights_BT: Tensor | None = None) -> SFTLoss:
    """Negative log-likelihood of each counted token, optionally weighted.

    Args:
        logps_BT: policy log-probs of the demonstrated tokens, nats; garbage allowed where uncounted.
        mask_BT: bool, True = trained on.
        weights_BT: finite weights >= 0, constants; None weighs every counted token 1. The denominator of the
            mean stays the caller's choice: count of tokens, or sum of weights.

    Returns:
        SFTLoss with loss_BT in float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or a counted weight is negative, not finite or requires grad.

    Source:
        Ouyang et al. 2022 (InstructGPT), section 3.5, "Supervised fine-tuning".
    """
    logps_BT = _checks.full_precision("logps_BT", logps_BT, ndim=2)
    _checks.bool_mask("mask_BT", mask_BT, "logps_BT", logps_BT)
    loss_BT = -zero_masked(logps_BT, mask_BT)
    if weights_BT is None:
        return SFTLoss(loss_BT)
    weights_BT = _checks.full_precision("weights_BT", weights_BT, ndim=2)
    _checks.same_shape("weights_BT", weights_BT, "logps_BT", logps_BT)
    _checks.constant("weights_BT", weights_BT)
    weights_BT = zero_masked(weights_BT, mask_BT)
    _checks.all_between("weights_BT", weights_BT, low=0.0)
    return SFTLoss(loss_BT * weights_BT)
