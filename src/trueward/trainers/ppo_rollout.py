"""One iteration of PPO up to the update: draw completions, score them, and turn scores into advantages.

Axes: B completions, T tokens.
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
from trueward.trainers.experience import Experience, PPOModels, RewardFunction, score_rollouts, scores_of
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.ppo_update import Targets

__all__ = ["Drawn", "Environment", "Learning", "advantages_of", "draw"]


class Environment(NamedTuple):
    """Where completions and their scores come from. gold: true scores, only reported."""

    engine: Engine
    reward: RewardFunction
    gold: RewardFunction | None


class Drawn(NamedTuple):
    """Scored completions before the update.

    scores_B: raw scores of the reward function: no penalty, no normalisation.
    kl_BT: k1 per token, KL(policy || ref).
    kl_k3: mean k3 per completion, nats.
    figures: declared metrics.
    seconds: wall-clock time of drawing and scoring.
    """

    experience: Experience
    scores_B: Tensor
    kl_BT: Tensor
    kl_k3: float
    figures: dict[str, float]
    seconds: float


class Learning(NamedTuple):
    """What the update learns from; `rewards_BT` is shown in the table of tokens."""

    rewards_BT: Tensor
    targets: Targets
    explained_variance: float


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
    rollouts = environment.engine.generate(
        [prompt.prompt_ids for prompt in prompts],
        num_completions=settings.completions_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(settings.seed, "rollouts", iteration),
    )
    rollout_s = time.monotonic() - start_s
    scores_B = scores_of(environment.reward, prompts, rollouts, name="the reward")
    seen = score_rollouts(models, prompts, rollouts, settings)
    kl_BT = kl.k1(seen.old_logps_BT, seen.ref_logps_BT)
    k3_B = masked_sum_B(kl.k3(seen.old_logps_BT, seen.ref_logps_BT), seen.mask_BT)
    lengths_B = seen.mask_BT.sum(dim=1).float()
    figures = {
        "reward": float(scores_B.mean()),
        "reward_std": float(scores_B.std(correction=0)),
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
    if environment.gold is not None:
        figures["gold"] = float(scores_of(environment.gold, prompts, rollouts, name="the gold reward").mean())
    return Drawn(seen, scores_B, kl_BT, float(k3_B.mean()), figures, time.monotonic() - start_s)


def advantages_of(drawn: Drawn, settings: PPOSettings, *, kl_coef: float) -> Learning:
    """Token rewards, GAE and whitening over all completions of the iteration.

    Args:
        kl_coef: price of a nat of KL, reward units.
    """
    seen = drawn.experience
    unfinished_B = torch.tensor([not rollout.finished for rollout in seen.rollouts])
    scores_B = drawn.scores_B - settings.missing_eos_penalty * unfinished_B
    rewards_BT = token_rewards(scores_B.to(drawn.kl_BT.device), drawn.kl_BT, seen.mask_BT, beta=kl_coef)
    if settings.whiten_rewards:
        rewards_BT = whiten(rewards_BT, seen.mask_BT, shift_mean=False)
    found = gae(rewards_BT, seen.old_values_BT, mask_BT=seen.mask_BT, gamma=settings.gamma, lam=settings.lam)
    whitened = settings.whiten_advantages
    advantages_BT = whiten(found.advantages_BT, seen.mask_BT) if whitened else found.advantages_BT
    return Learning(
        rewards_BT,
        Targets(advantages_BT=advantages_BT, returns_BT=found.returns_BT),
        _explained_variance(found.returns_BT, seen.old_values_BT, seen.mask_BT),
    )


def _explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(return - value) / Var(return) over counted tokens; nan where the returns do not vary."""
    returns_N, values_N = returns_BT[mask_BT], values_BT[mask_BT]
    spread = returns_N.var(correction=0)
    return float(1 - (returns_N - values_N).var(correction=0) / spread) if float(spread) > 0 else float("nan")
