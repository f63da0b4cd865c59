"""The clipped value objective of PPO, one value per token.

Not here: returns (see advantages.gae), the coefficient of the value loss, and the mean over tokens.
Axes: B sequences, T tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import zero_masked


class ValueLoss(NamedTuple):
    """Unreduced loss, 0 where uncounted; clipped_BT is True where the clip is active."""

    loss_BT: Tensor
    clipped_BT: Tensor


def ppo_value(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float | None = 0.2,
) -> ValueLoss:
    """Half the larger squared error: of the value, or of the value held within `clip` of the old one.

    Args:
        values_BT: values predicted now; garbage allowed where uncounted.
        old_values_BT: values predicted when the completions were drawn, no gradient.
        returns_BT: regression targets, no gradient.
        mask_BT: bool, True = completion token.
        clip: largest counted move of a value from the old one, > 0, in reward units; None does not clip.

    Returns:
        ValueLoss, float32 or better. A clipped token sends no gradient.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, clip is not > 0, or old values or returns require grad.

    Source:
        The squared error is Schulman et al. 2017 (PPO), eq. 9. The clip is not in the paper: it is from the
        code released with it (openai/baselines, ppo2), as in Huang et al. 2022, "The 37 Implementation
        Details of PPO", 9. The factor 0.5 is from that code too.
    """
    if clip is not None:
        _checks.number("clip", clip, low=0.0, above=True)
    values_BT = _checks.full_precision("values_BT", values_BT, ndim=2)
    old_values_BT = _checks.full_precision("old_values_BT", old_values_BT, ndim=2)
    returns_BT = _checks.full_precision("returns_BT", returns_BT, ndim=2)
    _checks.same_shape("old_values_BT", old_values_BT, "values_BT", values_BT)
    _checks.same_shape("returns_BT", returns_BT, "values_BT", values_BT)
    _checks.constant("old_values_BT", old_values_BT)
    _checks.constant("returns_BT", returns_BT)

    values_BT = zero_masked(values_BT, mask_BT)
    old_values_BT = zero_masked(old_values_BT, mask_BT)
    returns_BT = zero_masked(returns_BT, mask_BT)
    error_BT = (values_BT - returns_BT).square()
    if clip is None:
        return ValueLoss(0.5 * error_BT, torch.zeros_like(mask_BT))
    held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    held_error_BT = (held_BT - returns_BT).square()
    # Within the range both errors are equal but for the rounding of old + (value - old): not a clip.
    outside_BT = (values_BT - old_values_BT).abs() > clip
    clipped_BT = outside_BT & (held_error_BT > error_BT)
    return ValueLoss(0.5 * torch.where(clipped_BT, held_error_BT, error_BT), clipped_BT)
