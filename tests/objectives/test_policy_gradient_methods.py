"""The table of policy-gradient methods: each against its paper's objective, in value and gradient."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import policy_gradient as oracle
from trueward.objectives import (
    POLICY_GRADIENT_METHODS,
    REDUCTIONS,
    PolicyGradientMethod,
    StepTotals,
    policy_surrogate,
    ppo_policy,
    reinforce,
)

LENGTHS = [6, 2, 4, 1]
MASK = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
TOTALS = StepTotals(num_tokens=13, num_sequences=4, max_tokens=8)
LOW, HIGH = 0.2, 0.3
NAMES = list(POLICY_GRADIENT_METHODS)
SPLITS = {"whole": [[0, 1, 2, 3]], "halves": [[2, 0], [3, 1]], "ones": [[0], [1], [2], [3]]}


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Policy, old log-probs and advantages, one advantage per completion as these methods have."""
    generator = torch.Generator().manual_seed(seed)
    old = -1 - torch.rand(4, 6, generator=generator, dtype=torch.float64)
    logps = old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    # Whole completions move too, so that ratios of sequences leave the clip range.
    logps += torch.tensor([[0.6], [-0.6], [0.0], [-0.4]])
    advantages = torch.randn(4, 1, generator=generator, dtype=torch.float64).expand(4, 6).clone()
    return logps, old, advantages


def ranges(method: PolicyGradientMethod) -> dict[str, float]:
    return {} if method.clip == "none" else {"clip_low": LOW, "clip_high": HIGH}


def total(name: str, logps: Tensor, old: Tensor, advantages: Tensor, rows: list[int]) -> Tensor:
    """Share of some rows in the loss of the step."""
    method = POLICY_GRADIENT_METHODS[name]
    result = policy_surrogate(
        logps[rows], old[rows], advantages[rows], method=method, mask_BT=MASK[rows], **ranges(method)
    )
    return REDUCTIONS[method.reduction](result.loss_BT, MASK[rows], TOTALS)


def lists(table: Tensor) -> list[list[float]]:
    return [row[:length].tolist() for row, length in zip(table, LENGTHS, strict=True)]


def oracle_step(logps: Tensor, old: Tensor, advantages: Tensor) -> oracle.Step:
    return oracle.Step(lists(logps), lists(logps), lists(old), lists(advantages), LOW, HIGH, max_tokens=8)


# BNPO depends on the split by definition; see test_bnpo_depends_on_the_split.
@pytest.mark.parametrize(
    ("name", "split"), [(n, s) for n in NAMES for s in SPLITS if n != "bnpo" or s == "whole"], ids=str
)
def test_value_and_gradient_are_the_papers(name: str, split: str) -> None:
    logps, old, advantages = batch()
    live = logps.clone().requires_grad_()
    loss = torch.stack([total(name, live, old, advantages, rows) for rows in SPLITS[split]]).sum()
    step = oracle_step(logps, old, advantages)
    objective = oracle.OBJECTIVES[name]
    # 1e-12: sums of a dozen terms in float64, in another order.
    assert loss.item() == pytest.approx(objective(step), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, live)
    expected = torch.zeros_like(logps)
    for row, values in zip(expected, oracle.gradient(objective, step), strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    # Central differences at 1e-6 are good to about 1e-9.
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_the_batch_reaches_every_branch() -> None:
    # The oracle comparison above says nothing of a clip that no token meets.
    logps, old, advantages = batch()
    for name in ("grpo", "gspo", "cispo"):
        method = POLICY_GRADIENT_METHODS[name]
        clipped = policy_surrogate(
            logps, old, advantages, method=method, mask_BT=MASK, clip_low=LOW, clip_high=HIGH
        ).clipped_BT
        assert clipped.any() and not clipped[MASK].all(), name


def test_bnpo_depends_on_the_split() -> None:
    # Alone in their micro-batch, sequences weigh the same, which is GRPO's mean; together, tokens do.
    logps, old, advantages = batch()
    ones = sum(total("bnpo", logps, old, advantages, rows) for rows in SPLITS["ones"])
    torch.testing.assert_close(ones, total("grpo", logps, old, advantages, [0, 1, 2, 3]))
    whole = total("bnpo", logps, old, advantages, [0, 1, 2, 3])
    torch.testing.assert_close(whole, total("dapo", logps, old, advantages, [0, 1, 2, 3]))
    assert abs(float(whole - ones)) > 1e-3


def test_sequence_ratio_hand_value() -> None:
    # Token ratios 1/2 and 2/9: the log-ratios' mean is log(1/9) / 2 = log(1/3), so the ratio is 1/3 for both.
    # A = 2: min(2/3, clip to 0.8 * 2 = 1.6) = 2/3, not clipped. A = -2: min(-2/3, -1.6) = -1.6, clipped.
    gspo = POLICY_GRADIENT_METHODS["gspo"]
    logps = torch.tensor([[1 / 2, 2 / 9, 7.0]] * 2, dtype=torch.float64).log()
    advantages = torch.tensor([[2.0], [-2.0]], dtype=torch.float64).expand(2, 3)
    mask = torch.tensor([[True, True, False]] * 2)
    result = policy_surrogate(
        logps, torch.zeros_like(logps), advantages, method=gspo, mask_BT=mask, clip_low=0.2, clip_high=0.2
    )
    torch.testing.assert_close(result.ratio_BT.tolist(), [[1 / 3, 1 / 3, 1.0]] * 2)
    torch.testing.assert_close(result.loss_BT.tolist(), [[-2 / 3, -2 / 3, 0.0], [1.6, 1.6, 0.0]])
    assert result.clipped_BT.tolist() == [[False] * 3, [True, True, False]]


def test_clipped_weight_hand_value() -> None:
    # Ratios 3 and 1/2, A = 1, clip 0.2 up and none (1) down: weights 1.2 and 0.5, as constants.
    # d loss / d logp = -weight A, also where clipped: CISPO keeps the gradient of every token.
    logps = torch.tensor([[3.0, 0.5]], dtype=torch.float64).log().requires_grad_()
    ones = torch.ones(1, 2, dtype=torch.float64)
    result = policy_surrogate(
        logps, 0 * ones, ones, method=POLICY_GRADIENT_METHODS["cispo"], clip_low=1.0, clip_high=0.2
    )
    torch.testing.assert_close(result.loss_BT.tolist(), [[-1.2 * math.log(3), 0.5 * math.log(2)]])
    assert result.clipped_BT.tolist() == [[True, False]]
    torch.testing.assert_close(torch.autograd.grad(result.loss_BT.sum(), logps)[0].tolist(), [[-1.2, -0.5]])


def test_dual_clip_hand_value_and_oracle() -> None:
    # Ratio 5, A = -2, c = 3: min(-10, 1.2 * -2) = -10, held at 3 * -2 = -6; the loss is 6, without gradient.
    logps = torch.tensor([[5.0, 2.0, 5.0]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[-2.0, -2.0, 2.0]], dtype=torch.float64)
    result = ppo_policy(logps, 0 * advantages, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    torch.testing.assert_close(result.loss_BT.tolist(), [[6.0, 4.0, -2.4]])
    assert result.clipped_BT.tolist() == [[True, False, True]]
    assert torch.autograd.grad(result.loss_BT.sum(), logps)[0].tolist() == [[0.0, 4.0, 0.0]]
    live, old, spread = batch(3)
    live = old + 4 * (live - old)
    held = ppo_policy(live, old, spread, mask_BT=MASK, clip_low=LOW, clip_high=HIGH, dual_clip=1.5).loss_BT
    expected = oracle.ppo_policy(
        live.tolist(), old.tolist(), spread.tolist(), MASK.tolist(), LOW, HIGH, c=1.5
    )
    torch.testing.assert_close(held, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cispo"])
def test_gradcheck(name: str) -> None:
    # CISPO stops a gradient, so its derivative is not that of its value; the oracle moves around the stop.
    method = POLICY_GRADIENT_METHODS[name]
    logps, old, advantages = batch()
    assert torch.autograd.gradcheck(
        lambda x: policy_surrogate(x, old, advantages, method=method, mask_BT=MASK, **ranges(method)).loss_BT,
        (logps.requires_grad_(),),
    )


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_garbage_leaks_neither_into_value_nor_gradient(name: str, garbage: float) -> None:
    method = POLICY_GRADIENT_METHODS[name]
    clean = batch()
    live, *others = (torch.where(MASK, table, garbage) for table in clean)
    live.requires_grad_()
    dirty = policy_surrogate(live, *others, method=method, mask_BT=MASK, **ranges(method))
    expected = policy_surrogate(*clean, method=method, mask_BT=MASK, **ranges(method))
    for seen, wanted in zip(dirty, expected, strict=True):
        assert torch.equal(seen, wanted)
    (gradient,) = torch.autograd.grad(dirty.loss_BT.sum(), live)
    assert torch.isfinite(gradient).all() and (gradient[~MASK] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_counts_every_token(name: str) -> None:
    method = POLICY_GRADIENT_METHODS[name]
    everything = torch.ones(4, 6, dtype=torch.bool)
    with_mask = policy_surrogate(*batch(), method=method, mask_BT=everything, **ranges(method))
    without = policy_surrogate(*batch(), method=method, **ranges(method))
    assert torch.equal(with_mask.loss_BT, without.loss_BT)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_completion_adds_nothing(name: str) -> None:
    method = POLICY_GRADIENT_METHODS[name]
    logps, old, advantages = batch()
    live = logps.clone().requires_grad_()
    mask = MASK & (torch.arange(4) != 1).unsqueeze(1)
    result = policy_surrogate(live, old, advantages, method=method, mask_BT=mask, **ranges(method))
    loss = REDUCTIONS[method.reduction](result.loss_BT, mask, TOTALS)
    (gradient,) = torch.autograd.grad(loss, live)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("name", [n for n in NAMES if POLICY_GRADIENT_METHODS[n].clip == "surrogate"])
def test_overflowing_ratio_sends_no_gradient_when_clipped(name: str) -> None:
    method = POLICY_GRADIENT_METHODS[name]
    logps = torch.zeros(2, 2, requires_grad=True)
    old = torch.tensor([[-1e4, -1e4], [1e4, 1e4]])
    result = policy_surrogate(
        logps, old, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), method=method, clip_low=0.2, clip_high=0.2
    )
    torch.testing.assert_close(result.loss_BT, torch.tensor([[-1.2, -1.2], [0.8, 0.8]]))
    assert torch.autograd.grad(result.loss_BT.sum(), logps)[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_extreme_ratio_has_a_bounded_weight() -> None:
    logps = torch.zeros(1, 2, requires_grad=True)
    result = policy_surrogate(
        logps,
        torch.tensor([[-1e4, 1e4]]),
        torch.ones(1, 2),
        method=POLICY_GRADIENT_METHODS["cispo"],
        clip_low=1.0,
        clip_high=4.0,
    )
    torch.testing.assert_close(
        torch.autograd.grad(result.loss_BT.sum(), logps)[0], torch.tensor([[-5.0, 0.0]])
    )


def test_reinforce() -> None:
    # By hand: A = 2, log pi = -0.5: loss 1, gradient -2. Uncounted: 0, whatever stands there.
    logps = torch.tensor([[-0.5, math.nan]], requires_grad=True)
    result = reinforce(logps, torch.tensor([[2.0, math.nan]]), mask_BT=torch.tensor([[True, False]]))
    assert result.loss_BT.tolist() == [[1.0, 0.0]]
    assert torch.autograd.grad(result.loss_BT.sum(), logps)[0].tolist() == [[-2.0, 0.0]]
    with pytest.raises(ValueError, match="advantages_BT must not require grad"):
        reinforce(torch.zeros(1, 1), torch.zeros(1, 1, requires_grad=True))


def test_on_policy_all_token_methods_are_reinforce() -> None:
    # At ratio 1 nothing is clipped and the gradient per token is -A, for every method of the table.
    logps, _, advantages = batch()
    for name, method in POLICY_GRADIENT_METHODS.items():
        live = logps.clone().requires_grad_()
        result = policy_surrogate(live, logps, advantages, method=method, mask_BT=MASK, **ranges(method))
        # Through the mean over its sequence, each token gets the same sum from its whole sequence.
        (gradient,) = torch.autograd.grad(result.loss_BT.sum(), live)
        torch.testing.assert_close(gradient, torch.where(MASK, -advantages, 0.0), msg=name)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("rloo", {"clip_low": 0.2}, ValueError, "clip 'none' has no clip range"),
        ("grpo", {}, TypeError, "clip_low and clip_high must be numbers for clip 'surrogate', got None"),
        ("cispo", {"clip_low": 0.2}, TypeError, "must be numbers for clip 'weight', got None"),
        (
            "cispo",
            {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
            ValueError,
            "dual_clip belongs to clip 'surrogate', not to 'weight'",
        ),
        (
            "grpo",
            {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.0},
            ValueError,
            r"dual_clip must be finite and in \(1, inf\], got 1.0",
        ),
        (
            "gspo",
            {"clip_low": -1.0, "clip_high": 0.2},
            ValueError,
            r"clip_low must be finite and in \[0, 1\]",
        ),
    ],
    ids=str,
)
def test_wrong_clip_raises(
    name: str, arguments: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        policy_surrogate(*batch(), method=POLICY_GRADIENT_METHODS[name], **arguments)
