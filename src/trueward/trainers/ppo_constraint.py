"""Safe RLHF: PPO that maximises the reward while the mean cost of completions stays at or below a threshold.

lambda is the price of a unit of cost in units of reward. Each iteration moves it by the cost of its own
completions, then mixes the advantages at that price. Without a constraint the reward's are all there is.
Axes: C critics (the reward's, then the cost's where there is one), B completions, T tokens.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from trueward.objectives import lagrangian_advantages, update_log_lambda
from trueward.trainers.ppo_settings import PPOSettings

__all__ = ["Priced", "initial_log_lambda", "mixed_advantages", "priced"]


class Priced(NamedTuple):
    """log lambda of an iteration, None where nothing is constrained, and the declared metrics of the move."""

    log_lambda: float | None
    figures: dict[str, float]


def initial_log_lambda(settings: PPOSettings) -> float | None:
    """log lambda before the first iteration; None where nothing is constrained."""
    return None if settings.constraint is None else math.log(settings.constraint.init_lambda)


def priced(log_lambda: float | None, figures: Mapping[str, float], settings: PPOSettings) -> Priced:
    """Move lambda by the mean cost of the iteration's completions.

    Args:
        log_lambda: that of the iteration before.
        figures: of the iteration; `cost` is read.
    """
    if settings.constraint is None or log_lambda is None:
        return Priced(None, {})
    bound = settings.constraint
    moved = update_log_lambda(
        log_lambda,
        figures["cost"],
        threshold=bound.threshold,
        lr=bound.lambda_lr,
        max_log_lambda=None if bound.max_lambda is None else math.log(bound.max_lambda),
    )
    shown = {"constraint/lambda": math.exp(moved.log_lambda), "constraint/slack": moved.slack}
    return Priced(moved.log_lambda, shown)


def mixed_advantages(advantages_CBT: Tensor, log_lambda: float | None) -> Tensor:
    """What the policy learns from: the reward's advantages, less those of the cost at its price.

    Source:
        Dai et al. 2023 (2310.12773), appendix B.3, eq. 30.
    """
    if log_lambda is None:
        return advantages_CBT[0]
    reward_BT, cost_BT = advantages_CBT
    return lagrangian_advantages(reward_BT, cost_BT, log_lambda=log_lambda)
