"""KTO and BCO: values, baselines, invariances, extremes. Axes: B completions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import unpaired as oracle
from trueward.objectives.unpaired import UnpairedLoss, bco, bco_delta, kto, kto_kl

F64 = torch.float64
LOG3 = math.log(3)
Method = Callable[..., UnpairedLoss]
METHODS = pytest.mark.parametrize(("name", "method"), [("kto", kto), ("bco", bco)], ids=["kto", "bco"])


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, ref = -1 - 3 * torch.rand(2, 6, generator=generator, dtype=F64)
    return policy, ref, torch.tensor([True, False, False, True, True, False])


def test_kto_hand_value() -> None:
    # Log-ratios 3 and -1, kl 1, beta log(3) / 2: sigmoid(log 3) = 3/4 for the desirable one (3 - 1 = 2), and
    # for the other kl - r = 2, also 3/4. Losses: weight times 1/4.
    policy, ref = torch.tensor([-1.0, -5.0], dtype=F64), torch.tensor([-4.0, -4.0], dtype=F64)
    labels = torch.tensor([True, False])
    out = kto(policy, ref, labels, 1.0, beta=LOG3 / 2, desirable_weight=2.0, undesirable_weight=4.0)
    assert out.loss_B.tolist() == pytest.approx([0.5, 1.0])
    assert out.rewards_B.tolist() == pytest.approx([1.5 * LOG3, -0.5 * LOG3])
    # On the wrong side both lose 3/4: r - kl = -2 and kl - r = -2.
    turned = kto(policy, ref, ~labels, 1.0, beta=LOG3 / 2)
    assert turned.loss_B.tolist() == pytest.approx([0.75, 0.75])


def test_bco_hand_value() -> None:
    # Rewards log 9 and 0, delta log 3: r - delta = log 3 and -log 3, both cost log(4/3) times their weight.
    policy, ref = torch.tensor([-1.0, -4.0], dtype=F64), torch.tensor([-2.0, -4.0], dtype=F64)
    labels = torch.tensor([True, False])
    out = bco(policy, ref, labels, LOG3, beta=2 * LOG3, desirable_weight=2.0, undesirable_weight=0.5)
    assert out.loss_B.tolist() == pytest.approx([2 * math.log(4 / 3), 0.5 * math.log(4 / 3)])
    assert out.rewards_B.tolist() == pytest.approx([2 * LOG3, 0.0])
    # (mean of log 9) and (mean of 0, 2 log 3): the middle of 2 log 3 and log 3.
    rewards = torch.tensor([2 * LOG3, 0.0, 2 * LOG3], dtype=F64)
    delta = bco_delta(rewards, torch.tensor([True, False, False]))
    assert delta.item() == pytest.approx(1.5 * LOG3)
    assert bco_delta(rewards[1:], torch.tensor([False, False])).item() == pytest.approx(LOG3)


def test_kto_kl_by_hand() -> None:
    # (2 - 1) / 2, and clamped where the mean is negative.
    policy, ref = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -3.0])
    assert kto_kl(policy, ref).item() == 0.5
    assert kto_kl(ref, policy).item() == 0.0
    assert not kto_kl(policy.requires_grad_(), ref).requires_grad
    with pytest.raises(ValueError, match="mismatched_logps_B must hold at least one pair"):
        kto_kl(torch.zeros(0), torch.zeros(0))


@METHODS
@pytest.mark.parametrize("baseline", [0.0, 0.7], ids=str)
def test_oracle(name: str, method: Method, baseline: float) -> None:
    policy, ref, labels = _batch()
    options = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    expected = getattr(oracle, name)(policy.tolist(), ref.tolist(), labels.tolist(), baseline, **options)
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(method(policy, ref, labels, baseline, **options).loss_B, expected)
    as_tensor = torch.tensor(baseline, dtype=F64)
    torch.testing.assert_close(method(policy, ref, labels, as_tensor, **options).loss_B, expected)


def test_baselines_oracle() -> None:
    policy, ref, labels = _batch()
    for first, second in ((policy, ref), (ref, policy)):
        got = kto_kl(first, second).item()
        assert got == pytest.approx(oracle.kto_kl(first.tolist(), second.tolist()))
    got = bco_delta(policy, labels).item()
    assert got == pytest.approx(oracle.bco_delta(policy.tolist(), labels.tolist()))


@METHODS
def test_gradcheck_and_invariances(name: str, method: Method) -> None:
    policy, ref, labels = _batch()
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    whole = method(policy, ref, labels, 0.4, beta=0.5).loss_B
    permuted = method(policy[order], ref[order], labels[order], 0.4, beta=0.5).loss_B
    assert torch.equal(permuted, whole[order])
    parts = [method(policy[i : i + 1], ref[i : i + 1], labels[i : i + 1], 0.4, beta=0.5) for i in range(6)]
    torch.testing.assert_close(torch.cat([part.loss_B for part in parts]), whole)
    assert torch.equal(
        method(policy - 7, ref - 7, labels, 0.4, beta=0.5).loss_B.round(decimals=12), whole.round(decimals=12)
    )
    assert torch.autograd.gradcheck(
        lambda p: method(p, ref, labels, 0.4, beta=0.5, undesirable_weight=2.0).loss_B,
        policy.clone().requires_grad_(),
    )


@METHODS
@pytest.mark.parametrize("beta", [1.0, 1e-6], ids=["beta one", "beta near 0"])
def test_extremes(name: str, method: Method, beta: float) -> None:
    policy = torch.tensor([-1e4, -1e4, -1.0, -1.0], requires_grad=True)
    ref = torch.tensor([-1.0, -1.0, -1e4, -1e4])
    out = method(policy, ref, torch.tensor([True, False, True, False]), 0.0, beta=beta)
    (gradient,) = torch.autograd.grad(out.loss_B.sum(), policy)
    assert bool(torch.isfinite(out.loss_B).all()) and bool(torch.isfinite(gradient).all())
    if beta == 1.0:
        worst = 1.0 if name == "kto" else 9999.0
        assert out.loss_B.tolist() == [worst, 0.0, 0.0, worst]
    else:
        # d = +-0.01 around sigmoid 1/2.
        middle = 0.5 if name == "kto" else math.log(2)
        assert out.loss_B.tolist() == pytest.approx([middle] * 4, abs=0.01)


@METHODS
def test_rewards_carry_no_gradient_and_half_precision_is_cast_up(name: str, method: Method) -> None:
    policy, ref, labels = _batch()
    out = method(policy.bfloat16().requires_grad_(), ref.bfloat16(), labels, 0.1, beta=0.1)
    assert out.loss_B.dtype == torch.float32 and out.loss_B.requires_grad
    assert not out.rewards_B.requires_grad


@METHODS
def test_wrong_input_raises(name: str, method: Method) -> None:
    policy, ref, labels = _batch()
    baseline = {"kto": "kl", "bco": "delta"}[name]

    def call(p: Any = policy, r: Any = ref, d: Any = labels, b: Any = 0.0, **options: float) -> None:
        method(p, r, d, b, **{"beta": 0.1, **options})

    with pytest.raises(ValueError, match="ref_logps_B must have the shape of policy_logps_B"):
        call(r=ref[:1])
    with pytest.raises(ValueError, match="ref_logps_B must not require grad"):
        call(r=ref.clone().requires_grad_())
    with pytest.raises(TypeError, match="desirable_B must be bool"):
        call(d=labels.long())
    with pytest.raises(ValueError, match="desirable_B must have the shape of policy_logps_B"):
        call(d=labels[:2])
    with pytest.raises(ValueError, match=rf"{baseline} must be a number or a 0-d tensor, got shape \(2,\)"):
        call(b=torch.zeros(2))
    with pytest.raises(ValueError, match=f"{baseline} must not require grad"):
        call(b=torch.tensor(0.5, requires_grad=True))
    with pytest.raises(ValueError, match=f"{baseline} must be finite and in"):
        call(b=math.nan)
    for option in ("beta", "desirable_weight", "undesirable_weight"):
        with pytest.raises(ValueError, match=rf"{option} must be finite and in \(0, inf\], got 0"):
            call(**{option: 0.0})


def test_a_kl_below_zero_is_refused() -> None:
    policy, ref, labels = _batch()
    with pytest.raises(ValueError, match=r"kl must be finite and in \[0, inf\], got -0.1"):
        kto(policy, ref, labels, -0.1, beta=0.1)
    with pytest.raises(ValueError, match="rewards_B must hold at least one completion"):
        bco_delta(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
