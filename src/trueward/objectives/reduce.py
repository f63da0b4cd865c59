"""The one reduction: masked sums divided by the global count of the whole optimizer step.

Not here: counting. The caller adds up the count over micro-batches and processes before the first backward,
so that accumulating 4x1 equals 1x4 and any sharding equals none.
Axes: B sequences, T tokens.
"""

import torch
from torch import Tensor

from trueward.objectives import _checks


def zero_masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Set uncounted positions to exactly 0, and the gradient into them to exactly 0.

    Apply it before any nonlinear formula whose input may hold garbage: 0 * nan is nan, in value and in
    gradient, so masking the result alone is not enough.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.

    Returns:
        values_BT in float32 or better, 0 where uncounted.

    Raises:
        TypeError: values are not floating, or the mask is not bool.
        ValueError: shapes disagree.
    """
    values_BT = _checks.full_precision("values_BT", values_BT, ndim=2)
    _checks.bool_mask("mask_BT", mask_BT, "values_BT", values_BT)
    return torch.where(mask_BT, values_BT, 0.0)


def masked_sum_B(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of the counted positions of each sequence; a sequence with none sums to 0.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.

    Returns:
        sums_B, float32 or float64.

    Raises:
        TypeError: values are not floating, or the mask is not bool.
        ValueError: shapes disagree.
    """
    return zero_masked(values_BT, mask_BT).sum(dim=1)


def token_mean(values_BT: Tensor, mask_BT: Tensor, *, denominator: float | Tensor) -> Tensor:
    """Share of one micro-batch in the mean over all counted tokens of the optimizer step.

    Every token of the step weighs the same, whatever sequence, micro-batch or process it is in. Add the
    results up.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.
        denominator: GLOBAL number of counted tokens of the step, > 0; a number or a 0-d tensor.

    Returns:
        Scalar, float32 or float64.

    Raises:
        TypeError: wrong dtype of values, mask or denominator.
        ValueError: shapes disagree, or the denominator is not finite and > 0.
    """
    _check_denominator(denominator)
    return zero_masked(values_BT, mask_BT).sum() / denominator


def sequence_mean(values_B: Tensor, *, denominator: float | Tensor) -> Tensor:
    """Share of one micro-batch in the mean over all sequences (or pairs) of the optimizer step.

    Args:
        values_B: one value per sequence, any float dtype.
        denominator: GLOBAL number of sequences of the step, > 0; a number or a 0-d tensor.

    Returns:
        Scalar, float32 or float64.

    Raises:
        TypeError: wrong dtype of values or denominator.
        ValueError: values do not have one axis, or the denominator is not finite and > 0.
    """
    _check_denominator(denominator)
    return _checks.full_precision("values_B", values_B, ndim=1).sum() / denominator


def _check_denominator(denominator: float | Tensor) -> None:
    if not isinstance(denominator, Tensor):
        _checks.number("denominator", denominator, low=0.0, above=True)
        return
    if denominator.ndim != 0:
        raise ValueError(
            f"denominator must be a number or a 0-d tensor, got shape {tuple(denominator.shape)}"
        )
    _checks.constant("denominator", denominator)
    _checks.number("denominator", float(denominator), low=0.0, above=True)
