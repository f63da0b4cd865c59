"""PPO's value loss: clip both ways, no spurious clip by rounding, garbage."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import value as oracle
from trueward.objectives import ppo_value, token_mean

MASK = torch.arange(6) < torch.tensor([[6], [2], [4], [1]])


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return values, old, returns


def test_hand_value() -> None:
    # Old value 0, clip 0.2. Value 1, return 2: errors 1 and 1.8^2 = 3.24, clipped, 1.62.
    # Value 1, return 0: errors 1 and 0.2^2, not clipped, 0.5.
    # Value 0.1, return 1: within range, 0.9^2 / 2 = 0.405.
    # Value -1, return -2: as the first, mirrored.
    values = torch.tensor([[1.0, 1.0, 0.1, -1.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[2.0, 0.0, 1.0, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    result = ppo_value(values, torch.zeros_like(returns), returns, mask)
    torch.testing.assert_close(result.loss_BT.tolist(), [[1.62, 0.5, 0.405, 1.62]])
    assert result.clipped_BT.tolist() == [[True, False, False, True]]
    # d loss / d value = value - return, 0 where clipped.
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), values)
    torch.testing.assert_close(gradient.tolist(), [[0.0, 1.0, -0.9, 0.0]])
    unclipped = ppo_value(values, torch.zeros_like(returns), returns, mask, clip=None)
    torch.testing.assert_close(unclipped.loss_BT.tolist(), [[0.5, 0.5, 0.405, 0.5]])
    assert unclipped.clipped_BT.dtype == torch.bool and not unclipped.clipped_BT.any()


@pytest.mark.parametrize("clip", [0.2, 2.0, None], ids=str)
def test_oracle(clip: float | None) -> None:
    values, old, returns = _batch()
    result = ppo_value(values, old, returns, MASK, clip=clip)
    expected = oracle.ppo_value(values.tolist(), old.tolist(), returns.tolist(), MASK.tolist(), clip)
    torch.testing.assert_close(result.loss_BT, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("clip", [0.2, None], ids=str)
def test_gradcheck(clip: float | None) -> None:
    values, old, returns = _batch()
    assert torch.autograd.gradcheck(
        lambda x: ppo_value(x, old, returns, MASK, clip=clip).loss_BT, (values.requires_grad_(),)
    )


def test_equal_errors_are_not_a_clip() -> None:
    # Value 1 and held value 0.5 are both 0.25 away from the return 0.75: the value keeps its gradient.
    value = torch.ones(1, 1, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = ppo_value(value, torch.zeros(1, 1), torch.full((1, 1), 0.75), mask, clip=0.5)
    assert not result.clipped_BT.item()
    assert torch.autograd.grad(result.loss_BT.sum(), value)[0].item() == 0.25


def test_rounding_is_not_a_clip() -> None:
    # In float32 old + (value - old) differs from value in the last place for many pairs; none moved by 0.2.
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(64, 64, generator=generator)
    values = old + 0.19 * (2 * torch.rand(64, 64, generator=generator) - 1)
    result = ppo_value(values, old, torch.zeros(64, 64), torch.ones(64, 64, dtype=torch.bool))
    assert not result.clipped_BT.any()
    assert torch.equal(result.loss_BT, 0.5 * values.square())


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("clip", [0.2, None], ids=str)
def test_garbage_leaks_neither_into_value_nor_gradient(garbage: float, clip: float | None) -> None:
    values, old, returns = _batch()
    live = torch.where(MASK, values, garbage).requires_grad_()
    dirty = ppo_value(
        live, torch.where(MASK, old, garbage), torch.where(MASK, returns, garbage), MASK, clip=clip
    )
    clean = ppo_value(values, old, returns, MASK, clip=clip)
    for seen, expected in zip(dirty, clean, strict=True):
        assert torch.equal(seen, expected)
    (gradient,) = torch.autograd.grad(dirty.loss_BT.sum(), live)
    assert torch.isfinite(gradient).all() and (gradient[~MASK] == 0).all()
    assert (dirty.loss_BT[~MASK] == 0).all()


def test_mask_equals_filter_permutation_and_split() -> None:
    batch = _batch()
    whole = ppo_value(*batch, MASK).loss_BT
    order = torch.tensor([2, 3, 1, 0])
    values, old, returns = batch
    permuted = ppo_value(values[order], old[order], returns[order], MASK[order]).loss_BT
    assert torch.equal(permuted, whole[order])
    count = int(MASK.sum())
    parts = []
    for b in range(4):
        kept = int(MASK[b].sum())
        s = (slice(b, b + 1), slice(kept))
        row = ppo_value(values[s], old[s], returns[s], MASK[s]).loss_BT
        assert torch.equal(row, whole[s])
        parts.append(token_mean(row, MASK[s], denominator=count))
    torch.testing.assert_close(torch.stack(parts).sum(), token_mean(whole, MASK, denominator=count))


def test_extremes_stay_finite() -> None:
    one = torch.ones(1, 1)
    result = ppo_value((1e4 * one).requires_grad_(), -1e4 * one, -1e4 * one, one.bool())
    assert result.loss_BT.item() == 2e8 and not result.clipped_BT.item()


def test_half_precision_is_cast_up() -> None:
    values, old, returns = (x.bfloat16() for x in _batch())
    half = ppo_value(values, old, returns, MASK).loss_BT
    assert torch.equal(half, ppo_value(values.float(), old.float(), returns.float(), MASK).loss_BT)


def test_wrong_input_raises() -> None:
    values, old, returns = _batch()
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"clip must be finite and in \(0, inf\], got"):
            ppo_value(values, old, returns, MASK, clip=clip)
    with pytest.raises(
        ValueError, match=r"old_values_BT must have the shape of values_BT, \(4, 6\), got \(4, 1\)"
    ):
        ppo_value(values, old[:, :1], returns, MASK)
    with pytest.raises(
        ValueError, match=r"returns_BT must have the shape of values_BT, \(4, 6\), got \(4, 1\)"
    ):
        ppo_value(values, old, returns[:, :1], MASK)
    with pytest.raises(ValueError, match="mask_BT must have the shape of values_BT"):
        ppo_value(values, old, returns, MASK[:1])
    with pytest.raises(TypeError, match="mask_BT must be bool"):
        ppo_value(values, old, returns, MASK.int())
    with pytest.raises(ValueError, match="old_values_BT must not require grad"):
        ppo_value(values, old.clone().requires_grad_(), returns, MASK)
    with pytest.raises(ValueError, match="returns_BT must not require grad"):
        ppo_value(values, old, returns.clone().requires_grad_(), MASK)
