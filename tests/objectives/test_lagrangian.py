"""PPO-Lag: mixed advantages and the multiplier's update."""

import math
from typing import Any

import pytest
import torch

from tests.oracles import lagrangian as oracle
from trueward.objectives import lagrangian_advantages, update_log_lambda


def test_advantages_hand_value() -> None:
    # lambda 3: (2 - 3 * 4) / 4 = -2.5; (1 + 3 * 1) / 4 = 1.
    found = lagrangian_advantages(
        torch.tensor([[2.0, 1.0]], dtype=torch.float64),
        torch.tensor([[4.0, -1.0]], dtype=torch.float64),
        log_lambda=math.log(3),
    )
    torch.testing.assert_close(found.tolist(), [[-2.5, 1.0]])


@pytest.mark.parametrize("log_lambda", [-3.0, 0.0, 0.7, 5.0], ids=str)
def test_advantages_oracle(log_lambda: float) -> None:
    reward, cost = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lagrangian_advantages(reward, cost, log_lambda=log_lambda)
    pairs = zip(reward.flatten().tolist(), cost.flatten().tolist(), strict=True)
    torch.testing.assert_close(
        found.flatten().tolist(), [oracle.advantage(r, c, log_lambda) for r, c in pairs]
    )
    assert torch.equal(
        lagrangian_advantages(reward.flip(0), cost.flip(0), log_lambda=log_lambda), found.flip(0)
    )


def test_advantages_limits() -> None:
    # Without a price only the reward counts, at an endless one only the cost; nothing overflows.
    reward, cost = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    assert lagrangian_advantages(reward, cost, log_lambda=-1e4).item() == 1.0
    assert lagrangian_advantages(reward, cost, log_lambda=1e4).item() == -2.0


def test_update_hand_value() -> None:
    # lambda 2, mean cost 0.5 over threshold 0.1, lr 0.3: log 2 + 0.3 * 2 * 0.4. Slack 0.1 - 0.5.
    found = update_log_lambda(math.log(2), 0.5, threshold=0.1, lr=0.3)
    assert found.log_lambda == pytest.approx(math.log(2) + 0.24)
    assert found.slack == pytest.approx(-0.4) and not found.held
    assert found.log_lambda == pytest.approx(oracle.update(math.log(2), 0.5, 0.1, 0.3))


def test_update_is_ascent_on_the_lagrangian() -> None:
    # d / d log lambda of lambda (cost - threshold), by central differences.
    def lagrangian(log_lambda: float) -> float:
        return math.exp(log_lambda) * (0.7 - 0.2)

    slope = (lagrangian(0.3 + 1e-6) - lagrangian(0.3 - 1e-6)) / 2e-6
    moved = update_log_lambda(0.3, 0.7, threshold=0.2, lr=0.1).log_lambda
    assert moved - 0.3 == pytest.approx(0.1 * slope, rel=1e-8)


def test_update_direction_and_bound() -> None:
    assert update_log_lambda(0.0, 1.0, threshold=0.0, lr=0.1).log_lambda > 0
    assert update_log_lambda(0.0, -1.0, threshold=0.0, lr=0.1).log_lambda < 0
    assert update_log_lambda(0.0, 0.2, threshold=0.2, lr=0.1).log_lambda == 0.0
    held = update_log_lambda(0.9, 5.0, threshold=0.0, lr=1.0, max_log_lambda=1.0)
    assert held.log_lambda == 1.0 and held.held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_cost": math.nan}, "mean_cost must be finite"),
        ({"threshold": math.inf}, "threshold must be finite"),
        ({"lr": 0.0}, r"lr must be finite and in \(0, inf\], got 0.0"),
        ({"log_lambda": 81.0}, r"log_lambda must be finite and in \[-inf, 80\], got 81.0"),
        (
            {"log_lambda": 2.0, "max_log_lambda": 1.0},
            r"log_lambda must be finite and in \[-inf, 1\], got 2.0",
        ),
    ],
    ids=["cost", "threshold", "lr", "high", "bound"],
)
def test_update_wrong_input_raises(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update_log_lambda(**{"log_lambda": 0.0, "mean_cost": 0.0, "threshold": 0.0, "lr": 0.1, **change})


def test_advantages_wrong_input_raises() -> None:
    table = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="cost_advantages_BT must have the shape of reward_advantages_BT"):
        lagrangian_advantages(table, table[:, :1], log_lambda=0.0)
    with pytest.raises(ValueError, match="reward_advantages_BT must not require grad"):
        lagrangian_advantages(table.clone().requires_grad_(), table, log_lambda=0.0)
    with pytest.raises(ValueError, match="log_lambda must be finite"):
        lagrangian_advantages(table, table, log_lambda=math.nan)
