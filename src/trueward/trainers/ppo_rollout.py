"""One iteration of PPO up to the update: draw completions, score them, and turn scores into advantages.

Axes: C critics (the reward's, then the cost's under a constraint), B completions, T tokens.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens
from trueward.objectives import gae, kl, masked_sum_B, token_mean, token_rewards, whiten
from trueward.rollouts.engine import Engine
from trueward.trainers.drawing import draw_completions
from trueward.trainers.experience import Experience, PPOModels, RewardFunction, score_rollouts, scores_of
from trueward.trainers.ppo_constraint import mixed_advantages
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.ppo_update import Targets
from trueward.trainers.reward_sum import parts_of

__all__ = ["Drawn", "Environment", "Learning", "advantages_of", "draw"]


class _Critic(NamedTuple):
    """What sets a critic apart. explained: its metric. kl_sign: that of KL taken off its reward. penalised:
    whether a missing end counts."""

    explained: str
    kl_sign: float
    penalised: bool


_CRITICS = (
    _Critic("value_explained_variance", kl_sign=1.0, penalised=True),
    _Critic("cost/value_explained_variance", kl_sign=-1.0, penalised=False),
)
"""In the order of axis C: the reward's, the cost's."""


class Environment(NamedTuple):
    """Where completions and their scores come from. gold: true scores, only reported."""

    engine: Engine
    reward: RewardFunction
    gold: RewardFunction | None


class Drawn(NamedTuple):
    """Scored completions before the update.

    scores_CB: raw scores of the reward function, and costs: no penalty, no normalisation.
    kl_BT: k1 per token, KL(policy || ref).
    kl_k3: mean k3 per completion, nats.
    figures: declared metrics.
    seconds: wall-clock time of drawing and scoring.
    """

    experience: Experience
    scores_CB: Tensor
    kl_BT: Tensor
    kl_k3: float
    figures: dict[str, float]
    seconds: float


class Learning(NamedTuple):
    """What the update learns from.

    rewards_CBT: of each token, shown in the table of tokens.
    figures: declared metrics of the value functions.
    """

    rewards_CBT: Tensor
    targets: Targets
    figures: dict[str, float]


def draw(
    models: PPOModels,
    prompts: Sequence[TokenGroup],
    environment: Environment,
    settings: PPOSettings,
    *,
    iteration: int,
) -> Drawn:
    """Completions of `prompts` under the present policy, scored.

    Raises:
        RunError: sampler and trainer disagree, or scores that are not finite.
    """
    start_s = time.monotonic()
    rollouts = draw_completions(
        environment.engine,
        prompts,
        num_completions=settings.completions_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(settings.seed, "rollouts", iteration),
    )
    rollout_s = time.monotonic() - start_s
    scores_B = scores_of(environment.reward, prompts, rollouts, name="the reward")
    parts = parts_of(environment.reward)
    costs = (
        [scores_of(models.constraint.cost, prompts, rollouts, name="the cost")] if models.constraint else []
    )
    seen = score_rollouts(models, prompts, rollouts, settings)
    kl_BT = kl.k1(seen.old_logps_BT, seen.ref_logps_BT)
    k3_B = masked_sum_B(kl.k3(seen.old_logps_BT, seen.ref_logps_BT), seen.mask_BT)
    lengths_B = seen.mask_BT.sum(dim=1).float()
    figures = {
        "reward": float(scores_B.mean()),
        "reward_std": float(scores_B.std(correction=0)),
        **parts,
        "objective/kl": float(masked_sum_B(kl_BT, seen.mask_BT).mean()),
        "objective/kl_k3": float(k3_B.mean()),
        "objective/entropy": float(
            token_mean(seen.entropy_BT, seen.mask_BT, denominator=float(lengths_B.sum()))
        ),
        "completions/mean_length": float(lengths_B.mean()),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
        "sampler_gap/max": seen.sampler_gap,
        "tokens": float(sum(map(count_tokens, seen.groups))),
        "time/rollout_s": rollout_s,
    }
    for costs_B in costs:
        figures["cost"] = float(costs_B.mean())
    if environment.gold is not None:
        figures["gold"] = float(scores_of(environment.gold, prompts, rollouts, name="the gold reward").mean())
    scores_CB = torch.stack([scores_B, *costs])
    return Drawn(seen, scores_CB, kl_BT, float(k3_B.mean()), figures, time.monotonic() - start_s)


def advantages_of(
    drawn: Drawn, settings: PPOSettings, *, kl_coef: float, log_lambda: float | None = None
) -> Learning:
    """Token rewards, GAE of each critic, their mixture and whitening over all completions of the iteration.

    KL is taken off the reward and added to the cost, so that its price in the mixture is `kl_coef` at any
    lambda. Whitening follows the mixture: before it, lambda would be a price in no unit.

    Args:
        kl_coef: price of a nat of KL, reward units.
        log_lambda: logarithm of the price of a unit of cost; None where nothing is constrained.

    Source:
        Dai et al. 2023 (2310.12773), appendix B.3, with the whole KL in each term in place of its half.
    """
    seen = drawn.experience
    unfinished_B = torch.tensor([not rollout.finished for rollout in seen.rollouts])
    rewards, found, figures = [], [], {}
    # The critics of this run: without a constraint, the first.
    for critic, scores_B, values_BT in zip(_CRITICS, drawn.scores_CB, seen.old_values_CBT, strict=False):
        penalty = settings.missing_eos_penalty if critic.penalised else 0.0
        paid_B = (scores_B - penalty * unfinished_B).to(drawn.kl_BT.device)
        rewards_BT = token_rewards(paid_B, critic.kl_sign * drawn.kl_BT, seen.mask_BT, beta=kl_coef)
        if settings.whiten_rewards:
            rewards_BT = whiten(rewards_BT, seen.mask_BT, shift_mean=False)
        learned = gae(rewards_BT, values_BT, mask_BT=seen.mask_BT, gamma=settings.gamma, lam=settings.lam)
        figures[critic.explained] = _explained_variance(learned.returns_BT, values_BT, seen.mask_BT)
        rewards.append(rewards_BT)
        found.append(learned)
    mixed_BT = mixed_advantages(torch.stack([each.advantages_BT for each in found]), log_lambda)
    advantages_BT = whiten(mixed_BT, seen.mask_BT) if settings.whiten_advantages else mixed_BT
    returns_CBT = torch.stack([each.returns_BT for each in found])
    return Learning(
        torch.stack(rewards),
        Targets(advantages_BT=advantages_BT, returns_CBT=returns_CBT),
        figures,
    )


def _explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(return - value) / Var(return) over counted tokens; nan where the returns do not vary."""
    returns_N, values_N = returns_BT[mask_BT], values_BT[mask_BT]
    spread = returns_N.var(correction=0)
    return float(1 - (returns_N - values_N).var(correction=0) / spread) if float(spread) > 0 else float("nan")
