"""Rankings and ties: values, invariances, extremes. Axes: B prompts or pairs, K completions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.oracles import reward_model as oracle
from trueward.objectives.reward_model import (
    RankingLoss,
    TiesLoss,
    bradley_terry,
    davidson,
    plackett_luce,
    ranking_pairs,
    rao_kupper,
)

F64 = torch.float64
LOG2, LOG3 = math.log(2), math.log(3)
Ranking = Callable[[Tensor, Tensor], RankingLoss]
RANKINGS = pytest.mark.parametrize("objective", [plackett_luce, ranking_pairs], ids=["luce", "pairs"])
Ties = Callable[..., TiesLoss]
TIES = pytest.mark.parametrize(
    ("objective", "option", "value"),
    [(rao_kupper, "theta", 1.5), (davidson, "nu", 0.7)],
    ids=["rao-kupper", "davidson"],
)


def _rankings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 4, generator=generator, dtype=F64)
    return rewards, torch.stack([torch.randperm(4, generator=generator) for _ in range(5)])


def test_rankings_by_hand() -> None:
    # Rewards log 3, log 2, 0 are odds 3 : 2 : 1. In that order: 3/6 * 2/3 * 1 = 1/3. Reversed: 1/6 * 2/5.
    rewards = torch.tensor([[LOG3, LOG2, 0.0]] * 2, dtype=F64)
    ranks = torch.tensor([[1, 2, 3], [30, 20, 10]])
    out = plackett_luce(rewards, ranks)
    assert out.loss_B.tolist() == pytest.approx([LOG3, math.log(15)])
    assert out.accuracies_B.tolist() == [1.0, 0.0]
    # Pairs: 3/5, 3/4, 2/3, mean over three; reversed 2/5, 1/4, 1/3.
    pairs = ranking_pairs(rewards, ranks)
    expected = [-math.log(3 / 5 * 3 / 4 * 2 / 3) / 3, -math.log(2 / 5 / 4 / 3) / 3]
    assert pairs.loss_B.tolist() == pytest.approx(expected)
    # The first two tied: 3/4 and 2/3 are left, mean over two.
    tied = ranking_pairs(rewards[:1], torch.tensor([[1, 1, 2]]))
    assert tied.loss_B.item() == pytest.approx(-math.log(3 / 4 * 2 / 3) / 2)


@RANKINGS
def test_rankings_oracle(objective: Ranking) -> None:
    rewards, ranks = _rankings()
    judge = getattr(oracle, objective.__name__)
    expected = [judge(r, k) for r, k in zip(rewards.tolist(), ranks.tolist(), strict=True)]
    torch.testing.assert_close(objective(rewards, ranks).loss_B, torch.tensor(expected, dtype=F64))


def test_tied_ranks_oracle() -> None:
    rewards, _ = _rankings()
    ranks = torch.tensor([[0, 1, 1, 2]] * 5)
    expected = [oracle.ranking_pairs(r, k) for r, k in zip(rewards.tolist(), ranks.tolist(), strict=True)]
    torch.testing.assert_close(ranking_pairs(rewards, ranks).loss_B, torch.tensor(expected, dtype=F64))


@RANKINGS
def test_two_completions_are_bradley_terry(objective: Ranking) -> None:
    rewards, _ = _rankings()
    judge = bradley_terry(rewards[:, 1], rewards[:, 0])
    out = objective(rewards[:, :2], torch.tensor([[2, 1]] * 5))
    torch.testing.assert_close(out.loss_B, judge.loss_B)
    torch.testing.assert_close(out.accuracies_B, judge.accuracies_B)


@RANKINGS
def test_rankings_invariances_and_gradcheck(objective: Ranking) -> None:
    rewards, ranks = _rankings()
    whole = objective(rewards, ranks).loss_B
    columns, rows = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(objective(rewards[:, columns], ranks[:, columns]).loss_B, whole)
    torch.testing.assert_close(objective(rewards[rows], ranks[rows]).loss_B, whole[rows])
    torch.testing.assert_close(objective(rewards + 5, 10 * ranks - 3).loss_B, whole)
    parts = [objective(rewards[i : i + 1], ranks[i : i + 1]).loss_B for i in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.autograd.gradcheck(lambda r: objective(r, ranks).loss_B, rewards.clone().requires_grad_())


@RANKINGS
def test_rankings_at_extremes(objective: Ranking) -> None:
    rewards = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], requires_grad=True)
    out = objective(rewards, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    (gradient,) = torch.autograd.grad(out.loss_B.sum(), rewards)
    # Reversed, Luce: 2e4 + 1e4; pairs: (1e4 + 2e4 + 1e4) / 3.
    worst = 3e4 if objective is plackett_luce else 4e4 / 3
    assert out.loss_B.tolist() == pytest.approx([0.0, worst])
    assert bool(torch.isfinite(gradient).all())


@RANKINGS
def test_wrong_rankings_raise(objective: Ranking) -> None:
    rewards, ranks = _rankings()
    with pytest.raises(TypeError, match=r"ranks_BK must be integers, got torch.float"):
        objective(rewards, ranks.float())
    with pytest.raises(ValueError, match="ranks_BK must have the shape of rewards_BK"):
        objective(rewards, ranks[:, :2])
    with pytest.raises(ValueError, match=r"a ranking needs two completions or more, got shape \(5, 1\)"):
        objective(rewards[:, :1], ranks[:, :1])
    with pytest.raises(ValueError, match="row 1 "):
        objective(rewards, torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2], *[[0, 1, 2, 3]] * 3]))


def test_luce_refuses_ties() -> None:
    rewards, ranks = _rankings()
    ranks[3] = torch.tensor([0, 2, 1, 2])
    with pytest.raises(ValueError, match="ranks_BK must differ within a row, row 3 has a tie"):
        plackett_luce(rewards, ranks)


def test_ties_by_hand() -> None:
    # Worths 3 and 1, theta 3: 3 / (3 + 3), 1 / (1 + 9), and 1 - 1/2 - 1/10 = 2/5 for a tie.
    chosen, rejected = torch.tensor([LOG3] * 3, dtype=F64), torch.zeros(3, dtype=F64)
    tie = torch.tensor([False, True, True])
    out = rao_kupper(chosen, rejected, tie, theta=3.0)
    assert out.loss_B.tolist() == pytest.approx([math.log(2), math.log(5 / 2), math.log(5 / 2)])
    assert rao_kupper(rejected, chosen, ~tie, theta=3.0).loss_B[1].item() == pytest.approx(math.log(10))
    assert out.margins_B.tolist() == pytest.approx([LOG3] * 3)
    # Worths 4 and 1, nu 1/2: 4 : 1 : 1.
    chosen = torch.full((3,), 2 * LOG2, dtype=F64)
    out = davidson(chosen, rejected, tie, nu=0.5)
    assert out.loss_B.tolist() == pytest.approx([math.log(6 / 4), math.log(6), math.log(6)])


@TIES
def test_ties_oracle_and_invariances(objective: Ties, option: str, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 6, generator=generator, dtype=F64)
    tie = torch.tensor([True, False, False, True, False, True])
    out = objective(chosen, rejected, tie, **{option: value}).loss_B
    judge = getattr(oracle, objective.__name__)
    rows = zip(chosen.tolist(), rejected.tolist(), tie.tolist(), strict=True)
    torch.testing.assert_close(out, torch.tensor([judge(*row, value) for row in rows], dtype=F64))
    # A tie has no order, and the three outcomes are all there are.
    turned = objective(rejected, chosen, tie, **{option: value}).loss_B
    torch.testing.assert_close(out[tie], turned[tie])
    none, all_ = torch.zeros_like(tie), torch.ones_like(tie)
    total = sum(
        (-objective(a, b, t, **{option: value}).loss_B).exp()
        for a, b, t in ((chosen, rejected, none), (rejected, chosen, none), (chosen, rejected, all_))
    )
    torch.testing.assert_close(total, torch.ones(6, dtype=F64))
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    permuted = objective(chosen[order], rejected[order], tie[order], **{option: value}).loss_B
    assert torch.equal(permuted, out[order])
    assert torch.autograd.gradcheck(
        lambda c, r: objective(c, r, tie, **{option: value}).loss_B,
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


@TIES
def test_ties_near_their_limit_are_bradley_terry(objective: Ties, option: str, value: float) -> None:
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    limit = {option: {"theta": 1 + 1e-9, "nu": 1e-9}[option]}
    out = objective(chosen, rejected, torch.zeros(6, dtype=torch.bool), **limit).loss_B
    torch.testing.assert_close(out, bradley_terry(chosen, rejected).loss_B)


@TIES
def test_ties_at_extremes_and_wrong_input(objective: Ties, option: str, value: float) -> None:
    chosen = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    tie = torch.tensor([False, False, True, True])
    out = objective(chosen, -chosen.detach(), tie, **{option: value})
    (gradient,) = torch.autograd.grad(out.loss_B.sum(), chosen)
    assert bool(torch.isfinite(out.loss_B).all()) and bool(torch.isfinite(gradient).all())
    assert out.loss_B[0].item() == 0.0
    low = {"theta": 1.0, "nu": 0.0}[option]
    with pytest.raises(ValueError, match=rf"{option} must be finite and in \({low:g}, inf\], got {low}"):
        objective(chosen, chosen, tie, **{option: low})
    with pytest.raises(TypeError, match="tie_B must be bool"):
        objective(chosen, chosen, tie.long(), **{option: value})
    with pytest.raises(ValueError, match="rejected_rewards_B must have the shape of chosen_rewards_B"):
        objective(chosen, chosen[:1], tie, **{option: value})
