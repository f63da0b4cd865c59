"""PPO's clipped surrogate: all four corners, garbage, overflow, asymmetric ranges."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import policy_gradient as oracle
from trueward.objectives import PolicyLoss, ppo_policy, token_mean

MASK = torch.arange(6) < torch.tensor([[6], [2], [4], [1]])


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -1 - torch.rand(4, 6, generator=generator, dtype=torch.float64)
    logps = old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return logps, old, advantages


def clipped(
    logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor | None = None, clip: float = 0.2
) -> PolicyLoss:
    return ppo_policy(logps, old, advantages, mask_BT=mask, clip_low=clip, clip_high=clip)


def test_hand_value() -> None:
    # Ratios 3/2, 1/2, 3/2, 1/2 with A = 2, 2, -2, -2 and epsilon 0.2:
    # min(3, 2.4) clipped; min(1, 1.6) not; min(-3, -2.4) not; min(-1, -1.6) clipped.
    # The loss is the negative.
    logps = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    result = clipped(logps, torch.zeros_like(advantages), advantages, mask)
    torch.testing.assert_close(result.loss_BT.tolist(), [[-2.4, -1.0, 3.0, 1.6]])
    torch.testing.assert_close(result.ratio_BT.tolist(), [[1.5, 0.5, 1.5, 0.5]])
    assert result.clipped_BT.tolist() == [[True, False, False, True]]
    # d loss / d logp = -ratio A where not clipped, 0 where clipped.
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), logps)
    torch.testing.assert_close(gradient.tolist(), [[0.0, -1.0, 3.0, 0.0]])


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.3), (0.0, 0.0), (1.0, 5.0)], ids=str)
def test_oracle(clip: tuple[float, float]) -> None:
    logps, old, advantages = _batch()
    result = ppo_policy(logps, old, advantages, mask_BT=MASK, clip_low=clip[0], clip_high=clip[1])
    expected = oracle.ppo_policy(logps.tolist(), old.tolist(), advantages.tolist(), MASK.tolist(), *clip)
    torch.testing.assert_close(result.loss_BT, torch.tensor(expected, dtype=torch.float64))


def test_gradcheck() -> None:
    logps, old, advantages = _batch()
    assert torch.autograd.gradcheck(
        lambda x: clipped(x, old, advantages, MASK).loss_BT, (logps.requires_grad_(),)
    )


def test_the_edge_of_the_range_is_not_clipped() -> None:
    # With both ranges 0 the ratio of the first step, exactly 1, lies on both edges.
    zeros = torch.zeros(1, 2)
    advantages = torch.tensor([[1.0, -1.0]])
    live = zeros.clone().requires_grad_()
    result = clipped(live, zeros, advantages, clip=0)
    assert result.clipped_BT.tolist() == [[False, False]]
    assert torch.equal(torch.autograd.grad(result.loss_BT.sum(), live)[0], -advantages)


def test_underflowing_ratio_with_zero_advantage_is_not_a_clip() -> None:
    one = torch.ones(1, 1)
    result = clipped(-1e4 * one, 0 * one, 0 * one, one.bool())
    assert result.loss_BT.item() == 0.0 and not result.clipped_BT.item()


def test_first_step_is_the_plain_policy_gradient() -> None:
    # At policy = old the ratio is 1 and the gradient of the loss is -A.
    logps, _, advantages = _batch()
    live = logps.clone().requires_grad_()
    result = clipped(live, logps, advantages, MASK)
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), live)
    assert torch.equal(gradient, torch.where(MASK, -advantages, 0.0))
    assert not result.clipped_BT.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf], ids=str)
def test_garbage_leaks_neither_into_value_nor_gradient(garbage: float) -> None:
    logps, old, advantages = _batch()
    live = torch.where(MASK, logps, garbage).requires_grad_()
    dirty = clipped(live, torch.where(MASK, old, garbage), torch.where(MASK, advantages, garbage), MASK)
    clean = clipped(logps, old, advantages, MASK)
    for seen, expected in zip(dirty, clean, strict=True):
        assert torch.equal(seen, expected)
    (gradient,) = torch.autograd.grad(dirty.loss_BT.sum(), live)
    assert torch.isfinite(gradient).all() and (gradient[~MASK] == 0).all()
    assert (dirty.loss_BT[~MASK] == 0).all() and (dirty.ratio_BT[~MASK] == 1).all()
    assert not dirty.clipped_BT[~MASK].any()


def test_overflowing_ratio_sends_no_gradient_when_clipped() -> None:
    # exp(1e4) is inf. Clipped (A > 0) the loss is -(1 + eps) A; min() alone would have the gradient
    # 0 * inf = nan.
    logps = torch.tensor([[0.0, 0.0, -1e4]], requires_grad=True)
    old = torch.tensor([[-1e4, -1e4, 0.0]])
    advantages = torch.tensor([[1.0, 0.0, -1.0]])
    result = clipped(logps, old, advantages, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(result.loss_BT, torch.tensor([[-1.2, 0.0, 0.8]]))
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), logps)
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]
    assert result.ratio_BT.tolist() == [[math.inf, math.inf, 0.0]]
    # An advantage of 0 sends nothing either, but no clip is the cause.
    assert result.clipped_BT.tolist() == [[True, False, True]]


def test_overflowing_ratio_is_not_hidden_when_not_clipped() -> None:
    one = torch.ones(1, 1)
    result = clipped(0 * one, -1e4 * one, -one, one.bool())
    assert result.loss_BT.item() == math.inf


def test_mask_equals_filter_permutation_and_split() -> None:
    logps, old, advantages = _batch()
    whole = clipped(logps, old, advantages, MASK).loss_BT
    for b in range(4):
        kept = MASK[b : b + 1].sum()
        row = clipped(
            logps[b : b + 1, :kept],
            old[b : b + 1, :kept],
            advantages[b : b + 1, :kept],
            MASK[b : b + 1, :kept],
        )
        assert torch.equal(row.loss_BT, whole[b : b + 1, :kept])
    order = torch.tensor([2, 3, 1, 0])
    permuted = clipped(logps[order], old[order], advantages[order], MASK[order]).loss_BT
    assert torch.equal(permuted, whole[order])
    count = int(MASK.sum())
    parts = []
    for b in range(4):
        s = slice(b, b + 1)
        part = clipped(logps[s], old[s], advantages[s], MASK[s]).loss_BT
        parts.append(token_mean(part, MASK[s], denominator=count))
    torch.testing.assert_close(torch.stack(parts).sum(), token_mean(whole, MASK, denominator=count))


def test_reported_quantities_carry_no_gradient() -> None:
    logps, old, advantages = _batch()
    result = clipped(logps.requires_grad_(), old, advantages, MASK)
    assert result.loss_BT.requires_grad and not result.ratio_BT.requires_grad


def test_half_precision_is_cast_up() -> None:
    logps, old, advantages = (x.bfloat16() for x in _batch())
    half = clipped(logps, old, advantages, MASK).loss_BT
    assert torch.equal(half, clipped(logps.float(), old.float(), advantages.float(), MASK).loss_BT)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"clip_low": -0.1}, r"clip_low must be finite and in \[0, 1\], got -0.1"),
        ({"clip_low": 1.1}, r"clip_low must be finite and in \[0, 1\], got 1.1"),
        ({"clip_high": -0.1}, r"clip_high must be finite and in \[0, inf\], got -0.1"),
        ({"clip_high": math.inf}, r"clip_high must be finite"),
    ],
    ids=str,
)
def test_bad_clip_raises(clip: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ppo_policy(*_batch(), mask_BT=MASK, **{"clip_low": 0.2, "clip_high": 0.2, **clip})


def test_wrong_input_raises() -> None:
    logps, old, advantages = _batch()
    with pytest.raises(
        ValueError, match=r"old_logps_BT must have the shape of logps_BT, \(4, 6\), got \(4, 1\)"
    ):
        clipped(logps, old[:, :1], advantages, MASK)
    with pytest.raises(
        ValueError, match=r"advantages_BT must have the shape of logps_BT, \(4, 6\), got \(4, 1\)"
    ):
        clipped(logps, old, advantages[:, :1], MASK)
    with pytest.raises(ValueError, match="mask_BT must have the shape of logps_BT"):
        clipped(logps, old, advantages, MASK[:1])
    with pytest.raises(TypeError, match="mask_BT must be bool"):
        clipped(logps, old, advantages, MASK.int())
    with pytest.raises(ValueError, match="old_logps_BT must not require grad"):
        clipped(logps, old.clone().requires_grad_(), advantages, MASK)
    with pytest.raises(ValueError, match="advantages_BT must not require grad"):
        clipped(logps, old, advantages.clone().requires_grad_(), MASK)
