"""Bradley-Terry: value, margin, soft labels, centering, ties."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.oracles import reward_model as oracle
from trueward.objectives import accuracy, bradley_terry, sequence_mean


def _rewards(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = 2 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    margin, label = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    return chosen, rejected, margin, label


def test_hand_value() -> None:
    # sigmoid(log 3) = 3/4, so a lead of log 3 costs log(4/3). With margin log 3 the lead is 0: log 2.
    # Centering 0.5 adds 0.5 (log 3 + 1 + 1)^2 where the rewards are log 3 + 1 and 1.
    lead = math.log(3)
    chosen = torch.tensor([lead + 1.0], dtype=torch.float64)
    rejected = torch.tensor([1.0], dtype=torch.float64)
    result = bradley_terry(chosen, rejected)
    assert result.loss_B.item() == pytest.approx(math.log(4 / 3))
    assert result.margins_B.item() == pytest.approx(lead)
    assert result.accuracies_B.item() == 1.0
    with_margin = bradley_terry(chosen, rejected, margin_B=torch.tensor([lead], dtype=torch.float64))
    assert with_margin.loss_B.item() == pytest.approx(math.log(2))
    assert with_margin.margins_B.item() == pytest.approx(lead)
    centred = bradley_terry(chosen, rejected, center=0.5)
    assert centred.loss_B.item() == pytest.approx(math.log(4 / 3) + 0.5 * (lead + 2) ** 2)
    # A label of 1/4: 1/4 log(4/3) + 3/4 log 4.
    soft = bradley_terry(chosen, rejected, target_B=torch.tensor([0.25]))
    assert soft.loss_B.item() == pytest.approx(math.log(4 / 3) / 4 + 3 * math.log(4) / 4)


@pytest.mark.parametrize("with_margin", [False, True], ids=["no margin", "margin"])
@pytest.mark.parametrize("with_label", [False, True], ids=["hard label", "soft label"])
@pytest.mark.parametrize("centering", [0.0, 0.01], ids=["free", "centred"])
def test_oracle(with_margin: bool, with_label: bool, centering: float) -> None:
    chosen, rejected, margin, label = _rewards()
    loss = bradley_terry(
        chosen,
        rejected,
        margin_B=margin if with_margin else None,
        target_B=label if with_label else None,
        center=centering,
    ).loss_B
    used_margin = margin.tolist() if with_margin else [0.0] * 6
    used_label = label.tolist() if with_label else [1.0] * 6
    expected = oracle.bradley_terry(chosen.tolist(), rejected.tolist(), used_margin, used_label, centering)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_equals_binary_cross_entropy() -> None:
    chosen, rejected, _, label = _rewards()
    judge = functional.binary_cross_entropy_with_logits(chosen - rejected, label, reduction="none")
    torch.testing.assert_close(bradley_terry(chosen, rejected, target_B=label).loss_B, judge)


def test_gradcheck() -> None:
    chosen, rejected, margin, label = _rewards()

    def loss(r_c: Tensor, r_r: Tensor) -> Tensor:
        return bradley_terry(r_c, r_r, margin_B=margin, target_B=label, center=0.1).loss_B

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_exchanging_the_completions_and_the_label_changes_nothing() -> None:
    chosen, rejected, margin, label = _rewards()
    one = bradley_terry(chosen, rejected, margin_B=margin, target_B=label, center=0.1).loss_B
    other = bradley_terry(rejected, chosen, margin_B=margin, target_B=1 - label, center=0.1).loss_B
    torch.testing.assert_close(one, other)


def test_offset_of_the_rewards_is_free_without_centering() -> None:
    chosen, rejected, _, _ = _rewards()
    torch.testing.assert_close(
        bradley_terry(chosen + 5, rejected + 5).loss_B, bradley_terry(chosen, rejected).loss_B
    )


def test_permutation_and_split() -> None:
    chosen, rejected, margin, _ = _rewards()
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    whole = bradley_terry(chosen, rejected, margin_B=margin).loss_B
    permuted = bradley_terry(chosen[order], rejected[order], margin_B=margin[order]).loss_B
    assert torch.equal(permuted, whole[order])
    parts = [
        sequence_mean(
            bradley_terry(chosen[i : i + 1], rejected[i : i + 1], margin_B=margin[i : i + 1]).loss_B,
            denominator=6,
        )
        for i in range(6)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), sequence_mean(whole, denominator=6))


def test_extremes() -> None:
    chosen = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4, 0.0])
    result = bradley_terry(chosen, rejected)
    assert result.loss_B.tolist() == [0.0, 2e4, pytest.approx(math.log(2))]
    (gradient,) = torch.autograd.grad(result.loss_B.sum(), chosen)
    assert gradient.tolist() == [0.0, -1.0, -0.5]
    # (r_c + r_r)^2 overflows here; without centering it must not be computed, 0 * inf is nan.
    assert bradley_terry(torch.tensor([1e30]), torch.zeros(1)).loss_B.item() == 0.0
    soft = bradley_terry(chosen, rejected, target_B=torch.tensor([1.0, 0.0, 0.5])).loss_B
    assert soft.tolist() == [0.0, 0.0, pytest.approx(math.log(2))]


def test_ties_count_half_and_nan_stays_nan() -> None:
    chosen = torch.tensor([1.0, 1.0, 1.0, math.nan])
    rejected = torch.tensor([0.0, 1.0, 2.0, 1.0])
    values = accuracy(chosen, rejected).tolist()
    assert values[:3] == [1.0, 0.5, 0.0] and math.isnan(values[3])
    assert bradley_terry(chosen[:3], rejected[:3]).accuracies_B.tolist() == [1.0, 0.5, 0.0]


def test_reported_quantities_carry_no_gradient() -> None:
    chosen = torch.ones(2, requires_grad=True)
    result = bradley_terry(chosen, torch.zeros(2))
    assert result.loss_B.requires_grad
    assert not result.accuracies_B.requires_grad and not result.margins_B.requires_grad


def test_half_precision_is_cast_up() -> None:
    chosen, rejected = torch.tensor([1.5]).bfloat16(), torch.tensor([0.25]).bfloat16()
    assert torch.equal(
        bradley_terry(chosen, rejected).loss_B, bradley_terry(chosen.float(), rejected.float()).loss_B
    )


def test_wrong_input_raises() -> None:
    zeros = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"rejected_rewards_B must have the shape of chosen_rewards_B, \(3,\), got \(2,\)"
    ):
        bradley_terry(zeros, torch.zeros(2))
    with pytest.raises(ValueError, match=r"chosen_rewards_B must have 1 axis, got 2"):
        bradley_terry(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"target_B must be finite and in \[0, 1\], got an element 1.5"):
        bradley_terry(zeros, zeros, target_B=zeros + 1.5)
    with pytest.raises(ValueError, match=r"target_B must be finite and in \[0, 1\], got an element nan"):
        bradley_terry(zeros, zeros, target_B=zeros + math.nan)
    with pytest.raises(ValueError, match=r"margin_B must be finite and in \[0, inf\], got an element -1"):
        bradley_terry(zeros, zeros, margin_B=zeros - 1)
    with pytest.raises(ValueError, match="margin_B must have the shape of chosen_rewards_B"):
        bradley_terry(zeros, zeros, margin_B=torch.zeros(1))
    with pytest.raises(ValueError, match="margin_B must not require grad"):
        bradley_terry(zeros, zeros, margin_B=torch.zeros(3, requires_grad=True))
    with pytest.raises(ValueError, match=r"center must be finite and in \[0, inf\], got -0.1"):
        bradley_terry(zeros, zeros, center=-0.1)
    with pytest.raises(TypeError, match="chosen_rewards_B must be float16"):
        bradley_terry(zeros.long(), zeros)
    with pytest.raises(ValueError, match="rejected_B must have the shape of chosen_B"):
        accuracy(zeros, torch.zeros(1))
