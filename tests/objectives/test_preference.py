"""DPO: value, label smoothing, invariances, extremes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.oracles import preference as oracle
from trueward.objectives import bradley_terry, dpo, sequence_mean


def _logps(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logps = -5 - 3 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    return logps[0], logps[1], logps[2], logps[3]


def test_hand_value() -> None:
    # Policy / ref: chosen e^-1 / e^-3 (log-ratio 2), rejected e^-4 / e^-3 (log-ratio -1); beta = log(3) / 3.
    # Rewards 2 beta and -beta, difference 3 beta = log 3, sigmoid 3/4, loss log(4/3).
    beta = math.log(3) / 3
    logps = [torch.tensor([x], dtype=torch.float64) for x in (-1.0, -4.0, -3.0, -3.0)]
    result = dpo(*logps, beta=beta)
    assert result.loss_B.item() == pytest.approx(math.log(4 / 3))
    assert result.chosen_rewards_B.item() == pytest.approx(2 * beta)
    assert result.rejected_rewards_B.item() == pytest.approx(-beta)
    # Smoothing 0.25: 3/4 log(4/3) + 1/4 log 4.
    smoothed = dpo(*logps, beta=beta, label_smoothing=0.25)
    assert smoothed.loss_B.item() == pytest.approx(3 * math.log(4 / 3) / 4 + math.log(4) / 4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1], ids=["dpo", "cdpo"])
@pytest.mark.parametrize("beta", [0.1, 1.0], ids=str)
def test_oracle(beta: float, label_smoothing: float) -> None:
    logps = _logps()
    result = dpo(*logps, beta=beta, label_smoothing=label_smoothing)
    lists = [x.tolist() for x in logps]
    expected = oracle.dpo(lists[0], lists[1], lists[2], lists[3], beta, label_smoothing)
    torch.testing.assert_close(result.loss_B, torch.tensor(expected, dtype=torch.float64))
    chosen = [oracle.implicit_reward(p, r, beta) for p, r in zip(lists[0], lists[2], strict=True)]
    rejected = [oracle.implicit_reward(p, r, beta) for p, r in zip(lists[1], lists[3], strict=True)]
    torch.testing.assert_close(result.chosen_rewards_B.tolist(), chosen)
    torch.testing.assert_close(result.rejected_rewards_B.tolist(), rejected)


def test_is_bradley_terry_on_the_implicit_rewards() -> None:
    logps = _logps()
    result = dpo(*logps, beta=0.3, label_smoothing=0.2)
    label = torch.full((5,), 0.8, dtype=torch.float64)
    judge = bradley_terry(result.chosen_rewards_B, result.rejected_rewards_B, soft_label_B=label).loss_B
    torch.testing.assert_close(result.loss_B, judge)
    logits = 0.3 * ((logps[0] - logps[1]) - (logps[2] - logps[3]))
    judge = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    torch.testing.assert_close(result.loss_B, judge)


def test_gradcheck() -> None:
    chosen, rejected, ref_chosen, ref_rejected = _logps()
    assert torch.autograd.gradcheck(
        lambda c, r: dpo(c, r, ref_chosen, ref_rejected, beta=0.5, label_smoothing=0.1).loss_B,
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


def test_policy_equal_to_ref_costs_log_two() -> None:
    chosen, rejected, _, _ = _logps()
    result = dpo(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(result.loss_B, torch.full_like(chosen, math.log(2)))
    assert result.chosen_rewards_B.tolist() == [0.0] * 5


def test_common_shift_of_policy_and_ref_changes_nothing() -> None:
    # Tokens shared by both models, such as a longer template, add the same to policy and ref.
    chosen, rejected, ref_chosen, ref_rejected = _logps()
    shifted = dpo(chosen - 7, rejected, ref_chosen - 7, ref_rejected, beta=0.2).loss_B
    torch.testing.assert_close(shifted, dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.2).loss_B)


def test_permutation_and_split() -> None:
    logps = _logps()
    order = torch.tensor([4, 0, 3, 1, 2])
    whole = dpo(*logps, beta=0.2).loss_B
    assert torch.equal(dpo(*(x[order] for x in logps), beta=0.2).loss_B, whole[order])
    parts = [
        sequence_mean(dpo(*(x[i : i + 1] for x in logps), beta=0.2).loss_B, denominator=5) for i in range(5)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), sequence_mean(whole, denominator=5))


def test_extremes() -> None:
    policy = torch.tensor([-1e4, -1.0], requires_grad=True)
    other = torch.tensor([-1.0, -1e4])
    zeros = torch.full((2,), -1.0)
    loss = dpo(policy, other, zeros, zeros, beta=1.0).loss_B
    assert loss.tolist() == [9999.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.tolist() == [-1.0, 0.0]


def test_small_differences_of_large_sums_survive_in_float32() -> None:
    # 4096 and 2^-10 are exact in float32; their sum of four large terms in another order would not be.
    policy, ref = torch.tensor([-4096.0 + 2**-10]), torch.tensor([-4096.0])
    result = dpo(policy, ref, ref, ref, beta=1.0)
    assert result.chosen_rewards_B.item() == 2**-10


def test_reported_rewards_carry_no_gradient() -> None:
    policy = torch.zeros(2, requires_grad=True)
    result = dpo(policy, policy, torch.zeros(2), torch.zeros(2), beta=0.1)
    assert result.loss_B.requires_grad
    assert not result.chosen_rewards_B.requires_grad and not result.rejected_rewards_B.requires_grad


def test_half_precision_is_cast_up() -> None:
    logps = [x.bfloat16() for x in _logps()]
    assert torch.equal(dpo(*logps, beta=0.1).loss_B, dpo(*(x.float() for x in logps), beta=0.1).loss_B)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf], ids=str)
def test_bad_beta_raises(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be finite and in \(0, inf\], got"):
        dpo(*_logps(), beta=beta)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0], ids=str)
def test_bad_label_smoothing_raises(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be finite and in \[0, 0.5\), got"):
        dpo(*_logps(), beta=0.1, label_smoothing=smoothing)


@pytest.mark.parametrize(
    "position",
    [1, 2, 3],
    ids=["policy_rejected_logps_B", "ref_chosen_logps_B", "ref_rejected_logps_B"],
)
def test_wrong_shape_raises(position: int, request: pytest.FixtureRequest) -> None:
    logps = list(_logps())
    logps[position] = logps[position][:1]
    name = request.node.callspec.id
    with pytest.raises(
        ValueError, match=rf"{name} must have the shape of policy_chosen_logps_B, \(5,\), got \(1,\)"
    ):
        dpo(*logps, beta=0.1)


def test_wrong_input_raises() -> None:
    chosen, rejected, ref_chosen, ref_rejected = _logps()
    with pytest.raises(ValueError, match="ref_chosen_logps_B must not require grad"):
        dpo(chosen, rejected, ref_chosen.clone().requires_grad_(), ref_rejected, beta=0.1)
    with pytest.raises(ValueError, match="ref_rejected_logps_B must not require grad"):
        dpo(chosen, rejected, ref_chosen, ref_rejected.clone().requires_grad_(), beta=0.1)
    with pytest.raises(ValueError, match="policy_chosen_logps_B must have 1 axis, got 2"):
        dpo(chosen.view(1, 5), rejected, ref_chosen, ref_rejected, beta=0.1)
    with pytest.raises(TypeError, match=r"policy_rejected_logps_B must be a torch.Tensor, got list"):
        dpo(chosen, [0.0] * 5, ref_chosen, ref_rejected, beta=0.1)  # type: ignore[arg-type]
