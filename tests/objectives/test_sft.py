"""Supervised fine-tuning: negative log-likelihood per token."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.oracles import sft as oracle
from trueward.objectives import sft, token_logps, token_mean

MASK = torch.tensor([[True, True, False, False], [False, True, True, True]])


def _random(seed: int) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_value() -> None:
    # Trained tokens have probabilities 1/2 and 1/4: losses log 2 and log 4, twice that with weight 2.
    logps = torch.tensor([[0.5, 0.25, 0.1]]).log()
    mask = torch.tensor([[True, True, False]])
    expected = torch.tensor([[math.log(2), math.log(4), 0.0]])
    torch.testing.assert_close(sft(logps, mask).loss_BT, expected)
    weights = torch.tensor([[2.0, 0.0, 9.0]])
    torch.testing.assert_close(
        sft(logps, mask, weights_BT=weights).loss_BT, torch.tensor([[2 * math.log(2), 0.0, 0.0]])
    )


def test_oracle() -> None:
    logps, weights = -_random(0).abs(), _random(1).abs()
    expected = oracle.sft(logps.tolist(), MASK.tolist(), weights.tolist())
    torch.testing.assert_close(sft(logps, MASK, weights_BT=weights).loss_BT.tolist(), expected)


def test_equals_cross_entropy() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.randint(0, 9, (2, 4), generator=torch.Generator().manual_seed(4))
    loss = token_mean(sft(token_logps(logits, labels), MASK).loss_BT, MASK, denominator=int(MASK.sum()))
    torch.testing.assert_close(loss, functional.cross_entropy(logits[MASK], labels[MASK]))


def test_gradcheck() -> None:
    logps = _random(5).requires_grad_()
    weights = _random(6).abs()
    assert torch.autograd.gradcheck(lambda x: sft(x, MASK, weights_BT=weights).loss_BT, (logps,))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf], ids=str)
def test_garbage_leaks_neither_into_value_nor_gradient(garbage: float) -> None:
    clean, weights = _random(7), _random(8).abs()
    dirty = torch.where(MASK, clean, garbage).requires_grad_()
    dirty_weights = torch.where(MASK, weights, garbage)
    loss = sft(dirty, MASK, weights_BT=dirty_weights).loss_BT
    assert torch.equal(loss, sft(clean, MASK, weights_BT=weights).loss_BT)
    (gradient,) = torch.autograd.grad(loss.sum(), dirty)
    assert torch.equal(gradient, torch.where(MASK, -weights, 0.0))


def test_extreme_log_prob_is_reported_as_it_is() -> None:
    assert sft(torch.tensor([[-1e4]]), torch.tensor([[True]])).loss_BT.item() == 1e4


def test_wrong_input_raises() -> None:
    logps = _random(9)
    with pytest.raises(ValueError, match=r"weights_BT must be finite and in \[0, inf\], got an element -1"):
        sft(logps, MASK, weights_BT=torch.where(MASK, -1.0, 1.0))
    with pytest.raises(ValueError, match="weights_BT must not require grad"):
        sft(logps, MASK, weights_BT=torch.ones(2, 4, requires_grad=True))
    with pytest.raises(
        ValueError, match=r"weights_BT must have the shape of logps_BT, \(2, 4\), got \(2, 1\)"
    ):
        sft(logps, MASK, weights_BT=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"mask_BT must have the shape of logps_BT"):
        sft(logps, MASK[:1])
    with pytest.raises(ValueError, match=r"weights_BT must be finite.*got an element -2"):
        sft(logps, MASK, weights_BT=torch.tensor([[-2.0, -3.0, 1.0, 1.0], [-4.0, 1.0, 1.0, 1.0]]))
    with pytest.raises(TypeError, match="mask_BT must be bool"):
        sft(logps, MASK.float())
    with pytest.raises(TypeError, match=r"mask_BT must be a torch.Tensor, got list"):
        sft(logps, MASK.tolist())  # type: ignore[arg-type]
