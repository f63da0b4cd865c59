"""Reward under a constraint on cost, as in Safe RLHF: mixed advantages and the multiplier's update.

Maximise the reward subject to mean cost <= threshold; lambda is the price of a unit of cost. Not here: the
cost model and the policy loss (see policy_gradient).
Axes: B sequences, T tokens.
"""

import math
from typing import NamedTuple

from torch import Tensor

from trueward.objectives import _checks


class Multiplier(NamedTuple):
    """log lambda after an update, and what led there.

    log_lambda: natural logarithm of the price of a unit of cost.
    slack: threshold - mean cost, in units of cost; below 0 the constraint is violated.
    held: whether `max_log_lambda` was reached.
    """

    log_lambda: float
    slack: float
    held: bool


def lagrangian_advantages(
    reward_advantages_BT: Tensor, cost_advantages_BT: Tensor, *, log_lambda: float
) -> Tensor:
    """Advantage of the constrained policy: (A_reward - lambda A_cost) / (1 + lambda).

    The division keeps the size of the step while lambda grows. Both weights lie in [0, 1] and add up to 1;
    they are computed as sigmoids, which do not overflow at any log lambda.

    Args:
        reward_advantages_BT: advantages from the reward model, no gradient.
        cost_advantages_BT: advantages from the cost model, in which more is worse, no gradient.
        log_lambda: natural logarithm of the multiplier.

    Returns:
        advantages_BT, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, log_lambda is not finite, or an input requires grad.

    Source:
        Dai et al. 2023 (Safe RLHF, 2310.12773), appendix B.3, eq. 30.
    """
    _checks.number("log_lambda", log_lambda, low=-math.inf)
    reward_BT = _checks.full_precision("reward_advantages_BT", reward_advantages_BT, ndim=2)
    cost_BT = _checks.full_precision("cost_advantages_BT", cost_advantages_BT, ndim=2)
    _checks.same_shape("cost_advantages_BT", cost_BT, "reward_advantages_BT", reward_BT)
    _checks.constant("reward_advantages_BT", reward_BT)
    _checks.constant("cost_advantages_BT", cost_BT)
    return _sigmoid(-log_lambda) * reward_BT - _sigmoid(log_lambda) * cost_BT


def update_log_lambda(
    log_lambda: float,
    mean_cost: float,
    *,
    threshold: float,
    lr: float,
    max_log_lambda: float | None = None,
) -> Multiplier:
    """One ascent step: log lambda + lr * lambda * (mean_cost - threshold).

    lambda rises while the constraint is violated and falls while it holds; as its logarithm is what moves, it
    stays above 0.

    Args:
        log_lambda: natural logarithm of the multiplier.
        mean_cost: mean cost of the completions of the iteration, in units of cost.
        threshold: largest mean cost that is allowed; the paper's -d.
        lr: step size, > 0.
        max_log_lambda: upper bound of log lambda, whose reaching is reported; None has none.

    Returns:
        Multiplier.

    Raises:
        TypeError: not numbers.
        ValueError: not finite, lr is not > 0, or log_lambda or its update leaves its range.

    Source:
        Dai et al. 2023 (Safe RLHF, 2310.12773), appendix B.3, eq. 31, with J_C = mean_cost - threshold. The
        bound is from the code released with it.
    """
    for name, value in (("log_lambda", log_lambda), ("mean_cost", mean_cost), ("threshold", threshold)):
        _checks.number(name, value, low=-math.inf)
    _checks.number("lr", lr, low=0.0, above=True)
    if max_log_lambda is not None:
        _checks.number("max_log_lambda", max_log_lambda, low=-math.inf)
        _checks.number("log_lambda", log_lambda, low=-math.inf, high=max_log_lambda)
    # exp of more than 709 overflows; a price beyond e^80 is no price, and says so here.
    _checks.number("log_lambda", log_lambda, low=-math.inf, high=80.0)
    moved = log_lambda + lr * math.exp(log_lambda) * (mean_cost - threshold)
    held = max_log_lambda is not None and moved >= max_log_lambda
    if max_log_lambda is not None:
        moved = min(moved, max_log_lambda)
    return Multiplier(moved, threshold - mean_cost, held)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
