"""KL: direction, unbiasedness by full enumeration, gradients, behaviour near zero and far out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.oracles import kl as oracle
from trueward.objectives import KL_ESTIMATORS, kl

P_SAMPLER = [0.7, 0.3]
P_OTHER = [0.5, 0.5]


def _logps(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _logits(seed: int) -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_value() -> None:
    # KL((.7, .3) || (.5, .5)) = .7 log 1.4 + .3 log .6 = .235531 - .153248 = .082283; the reverse is .087177.
    forward = kl.exact(_logps(P_SAMPLER).view(1, 1, 2), _logps(P_OTHER).view(1, 1, 2)).item()
    assert forward == pytest.approx(0.0822829, abs=1e-7)
    reverse = kl.exact(_logps(P_OTHER).view(1, 1, 2), _logps(P_SAMPLER).view(1, 1, 2)).item()
    assert reverse == pytest.approx(0.0871767, abs=1e-7)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3], ids=["k1", "k3"])
def test_unbiased_in_the_named_direction(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    # The expectation over the sampler's own tokens is the exact KL(sampler || other), and not the reverse.
    sampler, other = _logps(P_SAMPLER), _logps(P_OTHER)
    expectation = (sampler.exp() * estimator(sampler, other)).sum()
    assert expectation.item() == pytest.approx(oracle.exact(P_SAMPLER, P_OTHER), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("k1", "zero"), ("k2", "kl"), ("k3", "reverse kl")], ids=["k1", "k2", "k3"]
)
def test_expected_gradient_as_a_loss(name: str, expected: str) -> None:
    # What the docstrings say of each estimator's use as a loss, by summing over the whole vocabulary.
    logits, other = _logits(0), _logits(1).log_softmax(-1)
    live = logits.clone().requires_grad_()
    logps = live.log_softmax(-1)
    (gradient,) = torch.autograd.grad((logps.exp().detach() * KL_ESTIMATORS[name](logps, other)).sum(), live)
    target = logits.clone().requires_grad_()
    exact = {
        "zero": lambda: 0.0 * target.sum(),
        "kl": lambda: kl.exact(target, other).sum(),
        "reverse kl": lambda: kl.exact(other, target).sum(),
    }[expected]()
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, target)[0])


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_oracle(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    q, p = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    function = {"k1": oracle.k1, "k2": oracle.k2, "k3": oracle.k3}[name]
    pairs = zip(q.flatten().tolist(), p.flatten().tolist(), strict=True)
    expected = torch.tensor([function(*pair) for pair in pairs], dtype=torch.float64).view(3, 4)
    torch.testing.assert_close(KL_ESTIMATORS[name](q.log(), p.log()), expected)


def test_exact_oracle_and_torch() -> None:
    logits, other = _logits(3), _logits(4)
    expected = torch.tensor(oracle.kl_exact(logits.tolist(), other.tolist()), dtype=torch.float64)
    torch.testing.assert_close(kl.exact(logits, other), expected)
    judge = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(logits=other)
    )
    torch.testing.assert_close(kl.exact(logits, other), judge)


def test_gradcheck() -> None:
    logits, other = _logits(5).requires_grad_(), _logits(6).requires_grad_()
    assert torch.autograd.gradcheck(kl.exact, (logits, other))
    for estimator in KL_ESTIMATORS.values():
        assert torch.autograd.gradcheck(estimator, (logits, other))


def test_k3_is_stable_near_zero() -> None:
    # In float32 exp(r) - 1 - r is off by 1e-7 absolute, 20 times the true r^2 / 2 at r = 1e-4.
    ratio = torch.tensor([1e-4, -1e-4, 1e-3, -1e-3, 0.0])
    value = kl.k3(torch.zeros(5), ratio)
    exact = ratio.double()
    expected = exact.square() / 2 + exact**3 / 6 + exact**4 / 24
    # expm1 is good to one unit in the last place of r: 6e-8 * r.
    assert ((value.double() - expected).abs() <= 1.2e-7 * exact.abs()).all()
    assert value[-1] == 0.0 and (value >= 0).all()


def test_extremes() -> None:
    sampler = torch.tensor([0.0, -1e4])
    other = torch.tensor([-1e4, 0.0])
    assert kl.k1(sampler, other).tolist() == [1e4, -1e4]
    assert kl.k2(sampler, other).tolist() == [5e7, 5e7]
    # exp(-1e4) - 1 + 1e4, and exp(1e4): inf is the value in float32, nothing clamps it.
    assert kl.k3(sampler, other).tolist() == [9999.0, math.inf]


def test_excluded_tokens() -> None:
    inf = math.inf
    logits = torch.tensor([[[0.0, 0.0, -inf, -inf]]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[[0.0, 0.0, 0.0, -inf]]], dtype=torch.float64)
    value = kl.exact(logits, other)
    assert value.item() == pytest.approx(math.log(3 / 2))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert kl.exact(other, logits.detach()).item() == inf


def test_half_precision_is_cast_up() -> None:
    q, p = torch.tensor([-1.0, -2.0]).bfloat16(), torch.tensor([-1.5, -1.0]).bfloat16()
    for estimator in KL_ESTIMATORS.values():
        assert torch.equal(estimator(q, p), estimator(q.float(), p.float()))


def test_positions_are_independent() -> None:
    q, p = _logits(7)[..., 0], _logits(8)[..., 0]
    for estimator in KL_ESTIMATORS.values():
        assert torch.equal(estimator(q.flip(0), p.flip(0)), estimator(q, p).flip(0))


def test_table_is_read_only() -> None:
    assert list(KL_ESTIMATORS) == ["k1", "k2", "k3"]
    with pytest.raises(TypeError):
        KL_ESTIMATORS["k4"] = kl.k1  # type: ignore[index]


def test_wrong_input_raises() -> None:
    for estimator in KL_ESTIMATORS.values():
        with pytest.raises(
            ValueError, match=r"other_logps must have the shape of sampler_logps, \(2,\), got \(1,\)"
        ):
            estimator(torch.zeros(2), torch.zeros(1))
        with pytest.raises(TypeError, match="sampler_logps must be float16"):
            estimator(torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(ValueError, match="other_logits_BTV must have the shape of logits_BTV"):
        kl.exact(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="logits_BTV must have 3 axes, got 2"):
        kl.exact(torch.zeros(2, 3), torch.zeros(2, 3))
