"""Objectives on pairs: one table of methods, one test for each property. Axes: B pairs, K samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.oracles import preference as oracle
from trueward.objectives import bradley_terry, preference, sequence_mean
from trueward.objectives.preference import PreferenceLoss, d2o, dpo, orpo

F64 = torch.float64
LOG3 = math.log(3)


class Case(NamedTuple):
    """A method with options. inputs: what it takes of policy (c, r), reference (C, R) and nll (n), in order.

    hand: loss at `hand_logps`, derived in the comment beside it.
    scale: of the implied rewards. mean: its log-probs are means.
    """

    name: str
    inputs: str
    options: dict[str, float]
    hand: float
    scale: float
    mean: bool = False

    @property
    def function(self) -> Callable[..., PreferenceLoss]:
        method: Callable[..., PreferenceLoss] = getattr(preference, self.name)
        return method

    def loss(self, **logps: Tensor) -> PreferenceLoss:
        return self.function(*(logps[letter] for letter in self.inputs), **self.options)


# Hand values: log-probs -1, -4 of the policy and -3, -3 of the reference, so the log-ratios are 2 and -1 and
# their difference 3; nll 1. With beta = log(3) / 3 the rewards are 2 log(3) / 3 and -log(3) / 3, and
# d = log 3, sigmoid(d) = 3/4.
BETA = LOG3 / 3
HAND = {"c": -1.0, "r": -4.0, "C": -3.0, "R": -3.0, "n": 1.0}
UP, DOWN = 1 / (1 + 3 ** (-2 / 3)), 1 / (1 + 3 ** (1 / 3))  # sigmoid of the two rewards
ODDS_1, ODDS_4 = 1 / (math.e - 1), 1 / (math.e**4 - 1)  # p / (1 - p) = 1 / (1 / p - 1)
CASES = [
    # log(4/3); smoothed by 1/4: 3/4 log(4/3) + 1/4 log 4; robust at 1/4: (3/4 log(4/3) - 1/4 log 4) / (1/2).
    Case("dpo", "crCR", {"beta": BETA}, math.log(4 / 3), BETA),
    Case(
        "dpo",
        "crCR",
        {"beta": BETA, "label_smoothing": 0.25},
        0.75 * math.log(4 / 3) + 0.25 * math.log(4),
        BETA,
    ),
    Case(
        "robust_dpo",
        "crCR",
        {"beta": BETA, "flip_rate": 0.25},
        1.5 * math.log(4 / 3) - 0.5 * math.log(4),
        BETA,
    ),
    # (3 - 1 / (2 * 1/4))^2 = 1.
    Case("ipo", "crCR", {"beta": 0.25}, 1.0, 0.25, mean=True),
    # 1 - 3 / 5.
    Case("hinge", "crCR", {"beta": 0.2}, 0.4, 0.2),
    Case("rpo", "crCRn", {"beta": BETA, "alpha": 0.5}, math.log(4 / 3) + 0.5, BETA),
    # At tau = 1 the two parts are sigmoid(-d) log(4/3) + sigmoid(d) / 3 = log(4/3) / 4 + 1 / 4.
    Case("discopop", "crCR", {"beta": BETA, "tau": 1.0}, math.log(4 / 3) / 4 + 0.25, BETA),
    # q = (3/4, 1/4), label (1/2, 1/2) were label_smoothing 1/2; at 1/4 both are equal: KL 0.
    Case("exo_pair", "crCR", {"beta": BETA, "label_smoothing": 0.25}, 0.0, BETA),
    Case("apo_zero", "crCR", {"beta": BETA}, 1 - UP + DOWN, BETA),
    # sigmoid(r_w) + 1 - 3/4.
    Case("apo_down", "crCR", {"beta": BETA}, UP + 0.25, BETA),
    Case(
        "nca_pair",
        "crCR",
        {"beta": BETA},
        -math.log(UP) - 0.5 * (math.log(1 - UP) + math.log(1 - DOWN)),
        BETA,
    ),
    # Targets +-1: (2 - 1)^2 + (-1 + 1)^2.
    Case("sppo_hard", "crCR", {"beta": 0.5}, 1.0, 0.5),
    # -1 + 4 = 3, times beta, less log(3) / 2: sigmoid(log(3) / 2).
    Case(
        "simpo",
        "cr",
        {"beta": BETA, "gamma": LOG3 / 2},
        math.log(1 + math.sqrt(1 / 3)),
        BETA,
        mean=True,
    ),
    Case("cpo", "cr", {"beta": BETA}, math.log(4 / 3), BETA),
    # nll + weight log(1 + odds_r / odds_c).
    Case("orpo", "crn", {"weight": 0.5}, 1 + 0.5 * math.log(1 + ODDS_4 / ODDS_1), 0.5, mean=True),
]
IDS = ["-".join([case.name, *(["smoothed"] if "label_smoothing" in case.options else [])]) for case in CASES]
METHODS = pytest.mark.parametrize("case", CASES, ids=IDS)


def _logps(seed: int = 0) -> dict[str, Tensor]:
    """Five pairs of random log-probs, and the nll of chosen."""
    generator = torch.Generator().manual_seed(seed)
    logps = -1 - 3 * torch.rand(4, 5, generator=generator, dtype=F64)
    return {**dict(zip("crCR", logps, strict=True)), "n": -logps[0] / 2}


@METHODS
def test_hand_value(case: Case) -> None:
    out = case.loss(**{name: torch.tensor([value], dtype=F64) for name, value in HAND.items()})
    assert out.loss_B.item() == pytest.approx(case.hand, abs=1e-12)
    chosen, rejected = (2.0, -1.0) if "C" in case.inputs else (-1.0, -4.0)
    assert out.chosen_rewards_B.item() == pytest.approx(case.scale * chosen)
    assert out.rejected_rewards_B.item() == pytest.approx(case.scale * rejected)


@METHODS
@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["options", "a tenth of them"])
def test_oracle(case: Case, scale: float) -> None:
    logps = _logps()
    case = case._replace(options={name: scale * value for name, value in case.options.items()})
    out = case.loss(**logps)
    rows = torch.stack([logps[letter] for letter in "crCR"], dim=1).tolist()
    nll = [[x] for x in logps["n"].tolist()] if "n" in case.inputs else [[] for _ in rows]
    judge = getattr(oracle, case.name)
    expected = [judge(tuple(row), *extra, **case.options) for row, extra in zip(rows, nll, strict=True)]
    # Float64 on both sides; the oracle multiplies probabilities, and loses a few digits more.
    torch.testing.assert_close(out.loss_B, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12)


@METHODS
def test_gradcheck(case: Case) -> None:
    logps = _logps()
    taken = [letter for letter in case.inputs if letter in "crn"]
    fixed = {letter: values for letter, values in logps.items() if letter not in taken}

    def loss(*values: Tensor) -> Tensor:
        return case.loss(**fixed, **dict(zip(taken, values, strict=True))).loss_B

    assert torch.autograd.gradcheck(loss, [logps[letter].clone().requires_grad_() for letter in taken])


@METHODS
def test_permutation_and_split(case: Case) -> None:
    logps = _logps()
    order = torch.tensor([4, 0, 3, 1, 2])
    whole = case.loss(**logps).loss_B
    assert torch.equal(case.loss(**{k: x[order] for k, x in logps.items()}).loss_B, whole[order])
    parts = [case.loss(**{k: x[i : i + 1] for k, x in logps.items()}).loss_B for i in range(5)]
    total = torch.stack([sequence_mean(part, denominator=5) for part in parts]).sum()
    torch.testing.assert_close(total, sequence_mean(whole, denominator=5))


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_margins_of_ten_thousand_stay_finite(case: Case, dtype: torch.dtype) -> None:
    chosen = torch.tensor([-1e4, -1e-3, -5.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-1e-3, -1e4, -5.0], dtype=dtype, requires_grad=True)
    ref = torch.full((3,), -1.0, dtype=dtype)
    out = case.loss(c=chosen, r=rejected, C=ref, R=ref, n=-chosen)
    gradients = torch.autograd.grad(out.loss_B.sum(), (chosen, rejected))
    assert all(bool(torch.isfinite(values).all()) for values in (*out, *gradients))


@METHODS
def test_a_tiny_beta_gives_the_limit(case: Case) -> None:
    options = {**case.options, **{"beta": 1e-6}} if "beta" in case.options else {"weight": 1e-6}
    logps = {name: x.float() for name, x in _logps().items()}
    loss = case._replace(options=options).loss(**logps).loss_B
    # At beta = 0 d is 0 and sigmoid 1/2; ipo and sppo have targets of 5e5 in the place of the difference.
    half = math.log(2)
    smoothing = options.get("label_smoothing", 0.0)
    kl = math.log(0.5) - 0.5 * math.log(smoothing * (1 - smoothing)) if smoothing else 0.0
    limits: dict[str, Any] = {
        "ipo": 2.5e11, "sppo_hard": 5e11, "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "exo_pair": kl,
        "nca_pair": 2 * half, "rpo": half + 0.5 * logps["n"], "orpo": logps["n"],
        "simpo": math.log(1 + math.sqrt(3)), "discopop": 0.5 * half + 0.5,
    }  # fmt: skip
    limit = torch.as_tensor(limits.get(case.name, half), dtype=torch.float32).expand(5)
    torch.testing.assert_close(loss, limit, rtol=2e-5, atol=1e-5)


@METHODS
def test_rewards_carry_no_gradient_and_half_precision_is_cast_up(case: Case) -> None:
    logps = {name: x.bfloat16() for name, x in _logps().items()}
    logps["c"].requires_grad_()
    out = case.loss(**logps)
    assert out.loss_B.requires_grad and out.loss_B.dtype == torch.float32
    assert not out.chosen_rewards_B.requires_grad and not out.rejected_rewards_B.requires_grad
    assert torch.equal(out.loss_B, case.loss(**{k: x.detach().float() for k, x in logps.items()}).loss_B)


def _name(case: Case, letter: str) -> str:
    if letter == "n":
        return "chosen_nll_B"
    name = {"c": "chosen", "r": "rejected", "C": "ref_chosen", "R": "ref_rejected"}[letter]
    return f"{name}_{'mean_' if case.mean else ''}logps_B"


@METHODS
def test_wrong_tensors_raise(case: Case) -> None:
    logps = _logps()
    first = _name(case, "c")
    for letter in case.inputs[1:]:
        name = _name(case, letter)
        # An objective that starts from another one names its argument.
        with pytest.raises(ValueError, match=rf"{name} must have the shape of \w+, \(5,\), got \(1,\)"):
            case.loss(**{**logps, letter: logps[letter][:1]})
        if letter in "CR":
            with pytest.raises(ValueError, match=f"{name} must not require grad"):
                case.loss(**{**logps, letter: logps[letter].clone().requires_grad_()})
    with pytest.raises(ValueError, match=f"{first} must have 1 axis, got 2"):
        case.loss(**{**logps, "c": logps["c"].view(1, 5)})
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got list"):
        case.loss(**{**logps, "r": [0.0] * 5})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{first} must be float16"):
        case.loss(**{**logps, "c": logps["c"].long()})


RANGES = [
    ("beta", [0.0, -0.1, math.nan, math.inf]),
    ("label_smoothing", [-0.1, 0.5, 1.0]),
    ("flip_rate", [-0.1, 0.5]),
    ("alpha", [-0.1, math.inf]),
    ("gamma", [-0.1, math.nan]),
    ("weight", [-0.1]),
    ("tau", [0.0, 1.1]),
]


@METHODS
def test_options_out_of_range_raise(case: Case) -> None:
    ranges = dict(RANGES)
    for name in case.options:
        bad = [*ranges[name], *([0.0] if (case.name, name) == ("exo_pair", "label_smoothing") else [])]
        for value in bad:
            with pytest.raises(ValueError, match=f"{name} must be finite and in"):
                case._replace(options={**case.options, name: value}).loss(**_logps())


def test_dpo_is_bradley_terry_on_the_implicit_rewards() -> None:
    logps = _logps()
    result = dpo(*(logps[k] for k in "crCR"), beta=0.3, label_smoothing=0.2)
    label = torch.full((5,), 0.8, dtype=F64)
    judge = bradley_terry(result.chosen_rewards_B, result.rejected_rewards_B, target_B=label).loss_B
    torch.testing.assert_close(result.loss_B, judge)
    logits = 0.3 * ((logps["c"] - logps["r"]) - (logps["C"] - logps["R"]))
    judge = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    torch.testing.assert_close(result.loss_B, judge)


def test_robust_dpo_is_unbiased_over_flips() -> None:
    logps = _logps()
    kept = preference.robust_dpo(*(logps[k] for k in "crCR"), beta=0.3, flip_rate=0.2).loss_B
    flipped = preference.robust_dpo(*(logps[k] for k in "rcRC"), beta=0.3, flip_rate=0.2).loss_B
    clean = dpo(*(logps[k] for k in "crCR"), beta=0.3).loss_B
    torch.testing.assert_close(0.8 * kept + 0.2 * flipped, clean)


def test_policy_equal_to_ref_costs_log_two() -> None:
    logps = _logps()
    result = dpo(logps["c"], logps["r"], logps["c"], logps["r"], beta=0.1)
    torch.testing.assert_close(result.loss_B, torch.full((5,), math.log(2), dtype=F64))
    assert result.chosen_rewards_B.tolist() == [0.0] * 5


@pytest.mark.parametrize("case", [case for case in CASES if "C" in case.inputs], ids=lambda case: case.name)
def test_common_shift_of_policy_and_ref_changes_nothing(case: Case) -> None:
    # Tokens shared by both models, such as a longer template, add the same to policy and ref.
    logps = _logps()
    shifted = case.loss(**{**logps, "c": logps["c"] - 7, "C": logps["C"] - 7})
    torch.testing.assert_close(shifted.loss_B, case.loss(**logps).loss_B)


def test_dpo_at_extremes_is_exact() -> None:
    policy = torch.tensor([-1e4, -1.0], requires_grad=True)
    ref = torch.full((2,), -1.0)
    loss = dpo(policy, torch.tensor([-1.0, -1e4]), ref, ref, beta=1.0).loss_B
    assert loss.tolist() == [9999.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.tolist() == [-1.0, 0.0]


def test_small_differences_of_large_sums_survive_in_float32() -> None:
    # 4096 and 2^-10 are exact in float32; their sum of four large terms in another order would not be.
    policy, ref = torch.tensor([-4096.0 + 2**-10]), torch.tensor([-4096.0])
    result = dpo(policy, ref, ref, ref, beta=1.0)
    assert result.chosen_rewards_B.item() == 2**-10


def test_orpo_where_a_completion_is_certain() -> None:
    # p_c -> 1: the loss tends to nll, and its slope in log p_c to -weight p_r / (1 - p_r).
    chosen = torch.zeros(1, dtype=F64, requires_grad=True)
    rejected = torch.tensor([math.log(0.25)], dtype=F64)
    loss = orpo(chosen, rejected, torch.zeros(1, dtype=F64), weight=1.0).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.item() == pytest.approx(-1 / 3, rel=1e-6)
    near = orpo(torch.tensor([-1e-9], dtype=F64), rejected, torch.zeros(1, dtype=F64), weight=1.0).loss_B
    # log(1 + (1/3) / odds), odds = 1e9: 1 - exp(-1e-9) as written would keep 7 digits only.
    assert near.item() == pytest.approx(1e-9 / 3, rel=1e-8)
    with pytest.raises(ValueError, match=r"chosen_mean_logps_B must be finite and in \[-inf, 0\], got an"):
        orpo(torch.tensor([0.1]), torch.tensor([-1.0]), torch.zeros(1), weight=1.0)


def _samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rejected, ref_rejected = -1 - 3 * torch.rand(2, 4, generator=generator, dtype=F64)
    sampled, ref_sampled = -1 - 3 * torch.rand(2, 4, 3, generator=generator, dtype=F64)
    return rejected, ref_rejected, sampled, ref_sampled


def test_d2o() -> None:
    # Log-ratios: dispreferred -1, samples 1 and 3 (mean 2). beta 0.5, alpha log(3) - 1: sigmoid(log 3) = 3/4.
    ones = torch.ones(1, dtype=F64)
    sampled = torch.tensor([[-2.0, 0.0]], dtype=F64)
    hand = d2o(-4 * ones, -3 * ones, sampled, torch.full((1, 2), -3.0, dtype=F64), beta=0.5, alpha=LOG3 - 1)
    assert hand.loss_B.item() == pytest.approx(math.log(4 / 3))
    assert hand.sampled_rewards_B.item() == 1.0
    assert hand.rejected_rewards_B.item() == pytest.approx(1 - LOG3)
    rejected, ref_rejected, samples, ref_samples = _samples()
    out = d2o(rejected, ref_rejected, samples, ref_samples, beta=0.3, alpha=0.1)
    expected = [
        oracle.d2o(
            (float(rejected[b]), float(ref_rejected[b])),
            list(zip(samples[b].tolist(), ref_samples[b].tolist(), strict=True)),
            beta=0.3,
            alpha=0.1,
        )
        for b in range(4)
    ]
    torch.testing.assert_close(out.loss_B, torch.tensor(expected, dtype=F64))
    order = torch.tensor([2, 0, 1])
    shuffled = d2o(rejected, ref_rejected, samples[:, order], ref_samples[:, order], beta=0.3, alpha=0.1)
    torch.testing.assert_close(shuffled.loss_B, out.loss_B)
    # With one sample it is DPO with the sample as chosen.
    judge = dpo(samples[:, 0], rejected, ref_samples[:, 0], ref_rejected, beta=0.3).loss_B
    one = d2o(rejected, ref_rejected, samples[:, :1], ref_samples[:, :1], beta=0.3, alpha=0.3).loss_B
    torch.testing.assert_close(one, judge)
    assert torch.autograd.gradcheck(
        lambda r, s: d2o(r, ref_rejected, s, ref_samples, beta=0.3, alpha=0.1).loss_B,
        (rejected.requires_grad_(), samples.requires_grad_()),
    )


def test_d2o_refuses_wrong_input() -> None:
    rejected, ref_rejected, sampled, ref_sampled = _samples()
    options = {"beta": 0.3, "alpha": 0.1}
    with pytest.raises(ValueError, match=r"sampled_logps_BK must have 4 rows .* got shape \(4, 0\)"):
        d2o(rejected, ref_rejected, sampled[:, :0], ref_sampled[:, :0], **options)
    with pytest.raises(ValueError, match=r"sampled_logps_BK must have 4 rows .* got shape \(2, 3\)"):
        d2o(rejected, ref_rejected, sampled[:2], ref_sampled[:2], **options)
    with pytest.raises(ValueError, match="ref_sampled_logps_BK must have the shape of sampled_logps_BK"):
        d2o(rejected, ref_rejected, sampled, ref_sampled[:, :1], **options)
    with pytest.raises(ValueError, match="ref_sampled_logps_BK must not require grad"):
        d2o(rejected, ref_rejected, sampled, ref_sampled.clone().requires_grad_(), **options)
    with pytest.raises(ValueError, match="ref_rejected_logps_B must not require grad"):
        d2o(rejected, ref_rejected.clone().requires_grad_(), sampled, ref_sampled, **options)
    for name in options:
        with pytest.raises(ValueError, match=rf"{name} must be finite and in \(0, inf\], got 0"):
            d2o(rejected, ref_rejected, sampled, ref_sampled, **{**options, name: 0.0})
