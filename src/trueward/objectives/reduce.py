"""Reductions: masked sums divided by the global count of the whole optimizer step.

Not here: counting. The caller adds up the count over micro-batches and processes before the first backward,
so that accumulating 4x1 equals 1x4 and any sharding equals none. REDUCTIONS names those of policy gradients;
one of them, micro_batch_token_mean, breaks that rule by definition and says so.
Axes: B sequences, T tokens.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

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


def masked_mean_B(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the counted positions of each sequence; a sequence with none has mean 0.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.

    Returns:
        means_B, float32 or float64.

    Raises:
        TypeError: values are not floating, or the mask is not bool.
        ValueError: shapes disagree.
    """
    return masked_sum_B(values_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1)


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


class StepTotals(NamedTuple):
    """GLOBAL figures of the optimizer step, over all of its micro-batches and processes, each > 0.

    num_tokens: counted tokens.
    num_sequences: sequences, those without a counted token included.
    max_tokens: longest completion that could have been drawn, the same at every step (Dr. GRPO's constant).
    """

    num_tokens: float | Tensor
    num_sequences: float | Tensor
    max_tokens: float


def constant_length_mean(
    values_BT: Tensor, mask_BT: Tensor, *, denominator: float | Tensor, max_tokens: float
) -> Tensor:
    """Share of one micro-batch in the mean over sequences of their sums divided by one constant length.

    Every token of every step weighs the same: no completion gains by being long or short.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.
        denominator: GLOBAL number of sequences of the step, > 0; a number or a 0-d tensor.
        max_tokens: the constant, > 0: longest completion that could have been drawn, in tokens.

    Returns:
        Scalar, float32 or float64.

    Raises:
        TypeError: wrong dtype of values, mask or denominator.
        ValueError: shapes disagree, or denominator or constant are not finite and > 0.

    Source:
        Liu et al. 2025 (Dr. GRPO, 2503.20783), appendix A, `masked_mean` with the constant MAX_TOKENS.
    """
    _checks.number("max_tokens", max_tokens, low=0.0, above=True)
    return sequence_mean(masked_sum_B(values_BT, mask_BT), denominator=denominator) / max_tokens


def micro_batch_token_mean(values_BT: Tensor, mask_BT: Tensor, *, denominator: float | Tensor) -> Tensor:
    """Mean over the counted tokens of this micro-batch, weighted with its share of the step's sequences.

    The result of the step depends on how it was cut into micro-batches, which is what distinguishes it from
    token_mean; with one sequence per micro-batch it is the mean of per-sequence means. No counted token gives
    0.

    Args:
        values_BT: any float dtype; uncounted positions may hold nan or inf.
        mask_BT: bool, True = counts.
        denominator: GLOBAL number of sequences of the step, > 0; a number or a 0-d tensor.

    Returns:
        Scalar, float32 or float64.

    Raises:
        TypeError: wrong dtype of values, mask or denominator.
        ValueError: shapes disagree, or the denominator is not finite and > 0.

    Source:
        TRL, loss type "bnpo".
    """
    _check_denominator(denominator)
    total = zero_masked(values_BT, mask_BT).sum()
    return total / mask_BT.sum().clamp(min=1) * (len(values_BT) / denominator)


Reduction = Literal[
    "constant_length", "micro_batch_token_mean", "sequence_sum", "sequence_token_mean", "token_mean"
]

REDUCTIONS: Mapping[Reduction, Callable[[Tensor, Tensor, StepTotals], Tensor]] = MappingProxyType(
    {
        "token_mean": lambda values_BT, mask_BT, totals: token_mean(
            values_BT, mask_BT, denominator=totals.num_tokens
        ),
        "sequence_token_mean": lambda values_BT, mask_BT, totals: sequence_mean(
            masked_mean_B(values_BT, mask_BT), denominator=totals.num_sequences
        ),
        "sequence_sum": lambda values_BT, mask_BT, totals: sequence_mean(
            masked_sum_B(values_BT, mask_BT), denominator=totals.num_sequences
        ),
        "constant_length": lambda values_BT, mask_BT, totals: constant_length_mean(
            values_BT, mask_BT, denominator=totals.num_sequences, max_tokens=totals.max_tokens
        ),
        "micro_batch_token_mean": lambda values_BT, mask_BT, totals: micro_batch_token_mean(
            values_BT, mask_BT, denominator=totals.num_sequences
        ),
    }
)
"""Reductions of a loss per token by name; each takes (values_BT, mask_BT, totals), and the shares add up."""


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
