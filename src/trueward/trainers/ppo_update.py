"""The update of PPO: clipped policy and value losses over the completions of one iteration.

An item is a prompt with its completions (an index into the experience), so that it goes through the same step
as the items of every other trainer.
Axes: C critics, B sequences, T tokens, N tokens of a packed row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from trueward.core.seed import derive_seed, generator
from trueward.data.chat import TokenGroup
from trueward.models.packing import completion_mask, pack, unflatten
from trueward.objectives import kl, ppo_policy, ppo_value, zero_masked
from trueward.trainers.accumulate import LossSum, StepObjective
from trueward.trainers.experience import Experience, PPOModels, policy_and_values, values_table
from trueward.trainers.groups import cut, describe_group, num_trained
from trueward.trainers.optim import device_of
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.step import Stepped, Trained, check_skips, take_step

__all__ = ["VALUE_LOSSES", "PPOObjective", "Targets", "Updated", "update_policy"]

VALUE_LOSSES = ("value_loss", "cost/value_loss")
"""Metrics of the critics, in the order of axis C."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What the update aims at: advantages for the policy, returns for the values; 0 where padded."""

    advantages_BT: Tensor
    returns_CBT: Tensor


class PPOObjective:
    """policy loss + value_coef * value loss of each critic: means over the minibatch's completion tokens."""

    name = "ppo"

    def __init__(
        self, models: PPOModels, experience: Experience, targets: Targets, settings: PPOSettings
    ) -> None:
        self._models, self._experience, self._targets, self._settings = models, experience, targets, settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")

    def describe(self, item: int) -> Mapping[str, object]:
        rows = self._rows([item])
        tables = {"old_logps": self._experience.old_logps_BT, "advantages": self._targets.advantages_BT}
        shown = {name: [[str(v) for v in row] for row in t[rows].tolist()] for name, t in tables.items()}
        return {**describe_group(self._experience.groups[item]), **shown}

    def count(self, items: Sequence[int]) -> float:
        return sum(num_trained(self._experience.groups[item]) for item in items)

    def micro_batches(self, items: Sequence[int], max_tokens: int) -> list[list[int]]:
        return cut(items, lambda item: self._experience.groups[item], max_tokens)

    def _rows(self, items: Sequence[int]) -> list[int]:
        each = self._settings.completions_per_prompt
        return [item * each + completion for item in items for completion in range(each)]

    def loss(self, model: nn.Module, items: Sequence[int]) -> LossSum:
        settings, seen = self._settings, self._experience
        packed = pack([seen.groups[item] for item in items], device_of(model))
        scores, values_CN = policy_and_values(self._models, packed, temperature=settings.temperature)
        logps_BT, mask_BT = unflatten(scores.logps_N, packed), completion_mask(packed)
        rows, longest = self._rows(items), mask_BT.shape[1]

        def old(table: Tensor) -> Tensor:
            return table[..., rows, :longest]

        old_logps_BT = old(seen.old_logps_BT)
        policy = ppo_policy(
            logps_BT,
            old_logps_BT,
            old(self._targets.advantages_BT),
            mask_BT=mask_BT,
            clip_low=settings.clip,
            clip_high=settings.clip,
        )
        tables = (values_table(values_CN, packed), old(seen.old_values_CBT), old(self._targets.returns_CBT))
        value_losses = [
            ppo_value(*critic, mask_BT, clip=settings.value_clip).loss_BT
            for critic in zip(*tables, strict=True)
        ]
        # The tokens were drawn from the old policy.
        moved_BT = zero_masked(kl.k3(old_logps_BT, logps_BT.detach()), mask_BT)
        count = float(packed.trained_N.sum())
        sums = {
            "policy_loss": policy.loss_BT,
            **dict(zip(VALUE_LOSSES, value_losses, strict=False)),
            "clip_ratio/mean": policy.clipped_BT.float(),
            "policy_kl_old": moved_BT,
        }
        return LossSum(
            policy.loss_BT.sum() + settings.value_coef * sum(loss_BT.sum() for loss_BT in value_losses),
            packed.num_tokens,
            {name: (table_BT.detach().sum(), count) for name, table_BT in sums.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Updated:
    """Figures of an iteration's optimizer steps: plain means over steps, and how many were skipped."""

    means: Mapping[str, float]
    skipped: int


def update_policy(
    trained: Trained,
    objective: StepObjective[int | TokenGroup],
    settings: PPOSettings,
    *,
    beside: Callable[[int], Sequence[TokenGroup]],
    iteration: int,
    skipped: int,
) -> Updated:
    """`epochs` passes over the completions in `minibatches` random parts each.

    Args:
        objective: of prompts by index, and of what stands beside them.
        beside: optimizer step, counted over the run -> demonstrations that it has beside its completions.
        skipped: optimizer steps skipped in earlier iterations.

    Raises:
        RunError: more than `max_skips` steps were not finite.
    """
    steps: list[Stepped] = []
    first = iteration * settings.epochs * settings.minibatches
    for epoch in range(settings.epochs):
        rng = generator(settings.seed, "minibatches", iteration, epoch)
        order = rng.permutation(settings.prompts_per_iteration)
        for part in np.array_split(order, settings.minibatches):
            step = first + len(steps)
            stepped = take_step(
                trained,
                objective,
                [*part.tolist(), *beside(step)],
                settings,
                step=step,
                num_steps=settings.num_updates,
                seed=derive_seed(settings.seed, "step", step),
            )
            steps.append(stepped)
            skipped += stepped.skipped
            check_skips(skipped, settings.max_skips, trained.folder)
    rows = [{**s.means, "loss": s.loss, "grad_norm": s.norm, "lr": s.lr} for s in steps]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return Updated(means=means, skipped=skipped)
