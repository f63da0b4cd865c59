"""Advantages without a value function: group-relative, leave-one-out, REINFORCE++."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import advantages as oracle
from trueward.objectives import group_relative, leave_one_out, reinforce_plus_plus

LENGTHS = [6, 2, 4, 1]
MASK = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)


def rewards() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def completions() -> tuple[Tensor, Tensor]:
    """Scores and KL."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, generator=generator, dtype=torch.float64), torch.randn(
        4, 6, generator=generator, dtype=torch.float64
    )


def test_hand_values() -> None:
    # 1, 2, 6: mean 3, deviations -2, -1, 3, their squares 14, 14 / 2 = 7. Others' means: 4, 3.5, 1.5.
    group = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    assert group_relative(group, scale="none").tolist() == [[-2.0, -1.0, 3.0]]
    spread = math.sqrt(7) + 1e-4
    torch.testing.assert_close(
        group_relative(group, scale="std").tolist(), [[-2 / spread, -1 / spread, 3 / spread]]
    )
    assert leave_one_out(group).tolist() == [[-3.0, -1.5, 4.5]]


@pytest.mark.parametrize("scale", ["none", "std"])
def test_group_oracle(scale: Any) -> None:
    expected = oracle.group_relative(rewards().tolist(), scale == "std")
    torch.testing.assert_close(group_relative(rewards(), scale=scale).tolist(), expected)
    torch.testing.assert_close(leave_one_out(rewards()).tolist(), oracle.leave_one_out(rewards().tolist()))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e30], ids=str)
def test_equal_rewards_have_advantage_exactly_zero(value: float) -> None:
    # 0.1 * 7 / 7 is not 0.1 in float32; a spread of 1e-9 must not become a signal.
    equal = torch.full((2, 7), value)
    for found in (
        group_relative(equal, scale="std"),
        group_relative(equal, scale="none"),
        leave_one_out(equal),
    ):
        assert torch.equal(found, torch.zeros(2, 7))


def test_invariances() -> None:
    table = rewards()
    order = torch.tensor([4, 2, 0, 1, 3])
    for found in (lambda r: group_relative(r, scale="std"), leave_one_out):
        torch.testing.assert_close(found(table[:, order]), found(table)[:, order])
        torch.testing.assert_close(found(table + 7.0), found(table))
        # Groups know nothing of each other: no micro-batch changes an advantage.
        assert torch.equal(found(table[1:2]), found(table)[1:2])
        torch.testing.assert_close(found(table).sum(dim=1), torch.zeros(3, dtype=torch.float64))


def test_reinforce_plus_plus_hand_value() -> None:
    # beta 0.5, score 1, KL 2, 4 on two tokens; score 3, no KL, on one token.
    # Returns: 1 - 0.5 (2 + 4) = -2, 1 - 0.5 * 4 = -1, and 3: mean 0, variance (4 + 1 + 9) / 3.
    kl = torch.tensor([[2.0, 4.0], [0.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    found = reinforce_plus_plus(torch.tensor([1.0, 3.0]), kl, mask_BT=mask, beta=0.5)
    spread = math.sqrt(14 / 3 + 1e-8)
    torch.testing.assert_close(found.tolist(), [[-2 / spread, -1 / spread], [3 / spread, 0.0]])


def test_reinforce_plus_plus_oracle_and_garbage() -> None:
    scores, kl = completions()
    found = reinforce_plus_plus(scores, torch.where(MASK, kl, math.nan), mask_BT=MASK, beta=0.3)
    expected = oracle.reinforce_plus_plus(scores.tolist(), kl.tolist(), LENGTHS, 0.3)
    for row, wanted, length in zip(found, expected, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length].tolist(), wanted)
    assert (found[~MASK] == 0).all()
    order = torch.tensor([2, 0, 3, 1])
    moved = reinforce_plus_plus(scores[order], kl[order], mask_BT=MASK[order], beta=0.3)
    torch.testing.assert_close(moved, found[order])


def test_reinforce_plus_plus_without_differences() -> None:
    found = reinforce_plus_plus(torch.full((3,), 2.0), torch.zeros(3, 4), beta=0.1)
    assert found.tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(3, 1), "rewards_PG needs at least 2 completions per prompt to compare, got 1"),
        (torch.zeros(3), "rewards_PG must have 2 axes, got 1"),
        (torch.tensor([[1.0, math.nan]]), "rewards_PG must be finite"),
        (torch.tensor([[1.0, math.inf]]), "rewards_PG must be finite"),
        (torch.zeros(1, 2, requires_grad=True), "rewards_PG must not require grad"),
    ],
    ids=["one", "axes", "nan", "inf", "gradient"],
)
def test_wrong_rewards_raise(table: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_relative(table, scale="std")
    with pytest.raises(ValueError, match=message):
        leave_one_out(table)


def test_other_wrong_input_raises() -> None:
    with pytest.raises(ValueError, match="scale must be 'none' or 'std', got 'batch'"):
        group_relative(rewards(), scale="batch")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rewards_PG must be float16"):
        leave_one_out(torch.zeros(2, 2, dtype=torch.int64))
    scores, kl = completions()
    with pytest.raises(ValueError, match="scores_B must be finite"):
        reinforce_plus_plus(scores * math.nan, kl, mask_BT=MASK, beta=0.1)
    with pytest.raises(ValueError, match="row 3 has none"):
        reinforce_plus_plus(scores, kl, mask_BT=MASK & (torch.arange(4) < 3).unsqueeze(1), beta=0.1)
    with pytest.raises(ValueError, match="beta must be finite"):
        reinforce_plus_plus(scores, kl, mask_BT=MASK, beta=-1.0)
