"""Token log-probs and entropy against the definition of the softmax."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import logprobs as oracle
from trueward.objectives import token_entropy, token_logps


def _logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_value() -> None:
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    logits = torch.tensor([[[1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    torch.testing.assert_close(token_logps(logits, torch.tensor([[1]])).item(), math.log(1 / 4))
    entropy = math.log(8) / 8 + math.log(4) / 4 + 5 * math.log(8 / 5) / 8
    torch.testing.assert_close(token_entropy(logits).item(), entropy)


def test_oracle() -> None:
    logits = _logits(2, 3, 7)
    labels = torch.tensor([[0, 6, 3], [2, 2, 5]])
    expected = torch.tensor(oracle.token_logps(logits.tolist(), labels.tolist()), dtype=torch.float64)
    torch.testing.assert_close(token_logps(logits, labels), expected)
    expected = torch.tensor(oracle.token_entropy(logits.tolist()), dtype=torch.float64)
    torch.testing.assert_close(token_entropy(logits), expected)


def test_gradcheck() -> None:
    logits = _logits(2, 2, 4).requires_grad_()
    labels = torch.tensor([[0, 3], [1, 1]])
    assert torch.autograd.gradcheck(lambda x: token_logps(x, labels), (logits,))
    assert torch.autograd.gradcheck(token_entropy, (logits,))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_precision_is_float32_or_better(dtype: torch.dtype, expected: torch.dtype) -> None:
    logits = _logits(1, 2, 5).to(dtype)
    labels = torch.tensor([[0, 4]])
    logps = token_logps(logits, labels)
    assert logps.dtype == token_entropy(logits).dtype == expected
    # The cast comes before the softmax: the same numbers in float32 give the same result to the last bit.
    assert torch.equal(logps, token_logps(logits.to(expected), labels))


def test_large_common_offset_costs_no_precision() -> None:
    # Offset 2^20 and steps of 1/8 are exact in float32; the log-probs must be those without the offset.
    logits = torch.tensor([[[0.0, 0.125, 1.5]]])
    labels = torch.tensor([[1]])
    shifted = token_logps(logits + 2.0**20, labels)
    torch.testing.assert_close(shifted, token_logps(logits, labels), rtol=1e-6, atol=0)


def test_excluded_token_contributes_nothing() -> None:
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], dtype=torch.float64, requires_grad=True)
    entropy = token_entropy(logits)
    torch.testing.assert_close(entropy.item(), math.log(2))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]]])
    assert token_logps(logits, torch.tensor([[1]])).item() == -2e4
    assert token_entropy(logits).item() == 0.0


def test_positions_are_independent() -> None:
    logits, labels = _logits(3, 4, 5), torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 1])
    assert torch.equal(token_logps(logits[order], labels[order]), token_logps(logits, labels)[order])
    assert torch.equal(token_logps(logits[:, 1:2], labels[:, 1:2]), token_logps(logits, labels)[:, 1:2])


@pytest.mark.parametrize("label", [-100, -1, 4], ids=str)
def test_label_outside_vocabulary_raises(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels_BT must be in \[0, 4\), got {label}"):
        token_logps(torch.zeros(1, 2, 4), torch.tensor([[0, label]]))


def test_wrong_input_raises() -> None:
    labels = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels_BT must have shape \(1, 3\).*got \(1, 2\)"):
        token_logps(torch.zeros(1, 3, 4), labels)
    with pytest.raises(TypeError, match=r"labels_BT must be an int64 tensor, got torch.int32"):
        token_logps(torch.zeros(1, 2, 4), labels.int())
    with pytest.raises(ValueError, match=r"logits_BTV must have 3 axes, got 2"):
        token_logps(torch.zeros(2, 4), labels)
    with pytest.raises(TypeError, match=r"logits_BTV must be float16.*got torch.int64"):
        token_entropy(torch.zeros(1, 2, 4, dtype=torch.int64))
