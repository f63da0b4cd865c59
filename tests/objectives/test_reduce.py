"""The reductions: one denominator for the step, no leak from uncounted positions."""

import math

import pytest
import torch
from torch import Tensor

from trueward.objectives import (
    REDUCTIONS,
    StepTotals,
    constant_length_mean,
    masked_mean_B,
    masked_sum_B,
    micro_batch_token_mean,
    sequence_mean,
    token_mean,
    zero_masked,
)
from trueward.objectives.reduce import Reduction

GARBAGE = [math.nan, math.inf, -math.inf]


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [0]])
    return values, mask


def test_hand_value() -> None:
    # Counted: 1 + 2 | 4. Sums 3 and 4; mean over the step's 10 tokens is 7 / 10.
    values = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum_B(values, mask).tolist() == [3.0, 4.0]
    assert token_mean(values, mask, denominator=10).item() == pytest.approx(0.7)
    assert sequence_mean(torch.tensor([3.0, 4.0]), denominator=10).item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", (1 + 2 + 4) / 3),
        ("sequence_token_mean", (1.5 + 4 + 0) / 3),
        ("sequence_sum", (3 + 4 + 0) / 3),
        ("constant_length", (3 + 4 + 0) / 8 / 3),
        ("micro_batch_token_mean", (1 + 2 + 4) / 3),
    ],
    ids=str,
)
def test_reductions_hand_values(name: Reduction, expected: float) -> None:
    # Three sequences: tokens 1, 2 | 4 | none. The longest that could have been drawn has 8 tokens.
    values = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.nan, math.nan], [math.nan] * 3])
    mask = torch.arange(3) < torch.tensor([[2], [1], [0]])
    totals = StepTotals(num_tokens=3, num_sequences=3, max_tokens=8)
    assert REDUCTIONS[name](values, mask, totals).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "micro_batch_token_mean"])
def test_reductions_add_up_over_any_split(name: Reduction) -> None:
    values, mask = _batch()
    totals = StepTotals(num_tokens=9, num_sequences=4, max_tokens=5)
    whole = REDUCTIONS[name](values, mask, totals)
    for split in ([[0], [1], [2], [3]], [[3, 1], [0, 2]]):
        parts = [REDUCTIONS[name](values[rows], mask[rows], totals) for rows in split]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_micro_batch_mean_weighs_micro_batches_by_their_sequences() -> None:
    # Means 1 and 3 of one and three of four sequences: (1 + 3 * 3) / 4.
    first = micro_batch_token_mean(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), denominator=4)
    rest = micro_batch_token_mean(torch.full((3, 1), 3.0), torch.ones(3, 1, dtype=torch.bool), denominator=4)
    assert float(first + rest) == 2.5


def test_mask_equals_filter() -> None:
    values, mask = _batch()
    kept = [row[m] for row, m in zip(values, mask, strict=True)]
    torch.testing.assert_close(masked_sum_B(values, mask), torch.stack([row.sum() for row in kept]))
    torch.testing.assert_close(token_mean(values, mask, denominator=9), torch.cat(kept).mean())


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_garbage_leaks_neither_into_value_nor_gradient(garbage: float) -> None:
    values, mask = _batch()
    dirty = torch.where(mask, values, garbage).requires_grad_()
    for function in (masked_sum_B, masked_mean_B, zero_masked, lambda v, m: token_mean(v, m, denominator=9)):
        result = function(dirty, mask)
        assert torch.equal(result, function(values, mask))
        (gradient,) = torch.autograd.grad(result.sum(), dirty)
        assert torch.isfinite(gradient).all()
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).all()


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_accumulating_4x1_equals_1x4(as_tensor: bool) -> None:
    values, mask = _batch()
    denominator: int | Tensor = mask.sum() if as_tensor else int(mask.sum())
    live = values.clone().requires_grad_()
    whole = token_mean(live, mask, denominator=denominator)
    (whole_gradient,) = torch.autograd.grad(whole, live)
    total, total_gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(values)
    for b in range(4):
        part = token_mean(live[b : b + 1], mask[b : b + 1], denominator=denominator)
        total_gradient += torch.autograd.grad(part, live)[0]
        total += part.detach()
    torch.testing.assert_close(total, whole.detach())
    assert torch.equal(total_gradient, whole_gradient)


def test_sequence_mean_accumulates() -> None:
    values, _ = _batch()
    whole = sequence_mean(values[:, 0], denominator=4)
    parts = sum(sequence_mean(values[b : b + 1, 0], denominator=4) for b in range(4))
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole, values[:, 0].mean())


def test_permutation_of_sequences_permutes_sums() -> None:
    values, mask = _batch()
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(masked_sum_B(values[order], mask[order]), masked_sum_B(values, mask)[order])


@pytest.mark.parametrize("denominator", [0.125, torch.tensor(0.125)], ids=["number", "tensor"])
def test_denominator_may_be_a_small_sum_of_weights(denominator: float | Tensor) -> None:
    assert sequence_mean(torch.ones(2), denominator=denominator).item() == 16.0


def test_half_precision_is_summed_in_float32() -> None:
    # 2048 + 1 is 2048 in float16: a half-precision sum of 4096 ones would stop at 2048.
    values = torch.ones(1, 4096, dtype=torch.float16)
    sums = masked_sum_B(values, torch.ones(1, 4096, dtype=torch.bool))
    assert sums.dtype == torch.float32 and sums.item() == 4096
    assert sequence_mean(values[0], denominator=1).item() == 4096


def test_gradcheck() -> None:
    values, mask = _batch()
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: masked_sum_B(v, mask), (values,))
    totals = StepTotals(num_tokens=9, num_sequences=4, max_tokens=5)
    for reduction in REDUCTIONS.values():
        assert torch.autograd.gradcheck(lambda v, r=reduction: r(v, mask, totals), (values,))


@pytest.mark.parametrize("denominator", [0, -1.0, math.nan, math.inf, torch.tensor(0)], ids=str)
def test_bad_denominator_raises(denominator: float | Tensor) -> None:
    values, mask = _batch()
    with pytest.raises(ValueError, match="denominator must be finite and in"):
        token_mean(values, mask, denominator=denominator)
    with pytest.raises(ValueError, match="denominator must be finite and in"):
        sequence_mean(values[:, 0], denominator=denominator)


def test_wrong_input_raises() -> None:
    values, mask = _batch()
    with pytest.raises(TypeError, match=r"mask_BT must be bool \(True = counts\), got torch.int64"):
        masked_sum_B(values, mask.long())
    with pytest.raises(ValueError, match=r"mask_BT must have the shape of values_BT, \(4, 5\), got \(1, 5\)"):
        masked_sum_B(values, mask[:1])
    with pytest.raises(ValueError, match="values_BT must have 2 axes, got 1"):
        masked_sum_B(values[0], mask[0])
    with pytest.raises(ValueError, match="values_B must have 1 axis, got 2"):
        sequence_mean(values, denominator=4)
    with pytest.raises(ValueError, match=r"denominator must be a number or a 0-d tensor, got shape \(4,\)"):
        sequence_mean(values[:, 0], denominator=torch.ones(4))
    with pytest.raises(ValueError, match="denominator must not require grad"):
        sequence_mean(values[:, 0], denominator=torch.tensor(4.0, requires_grad=True))
    with pytest.raises(ValueError, match=r"max_tokens must be finite and in \(0, inf\], got 0"):
        constant_length_mean(values, mask, denominator=4, max_tokens=0)
    with pytest.raises(ValueError, match=r"denominator must be finite and in \(0, inf\], got 0"):
        micro_batch_token_mean(values, mask, denominator=0)
    with pytest.raises(TypeError, match="denominator must be a number, got str"):
        token_mean(values, mask, denominator="9")  # type: ignore[arg-type]
