"""The update of the group trainer: one policy-gradient loss over the completions of a round.

    loss of a token = importance weight * policy loss, + kl_coef * KL to ref where that is paid in the loss
An item is a prompt with its completions (an index into the experience), so that it goes through the same step
as the items of every other trainer.
Axes: B sequences, T tokens, N tokens of a packed row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from trueward.core.seed import derive_seed, generator
from trueward.models.packing import completion_mask, pack, unflatten
from trueward.models.scoring import score_completions
from trueward.objectives import (
    ImportanceWeights,
    kl,
    masked_importance,
    policy_surrogate,
    truncated_importance,
    zero_masked,
)
from trueward.objectives.reduce import REDUCTIONS, StepTotals
from trueward.trainers.accumulate import LossSum
from trueward.trainers.group_experience import GroupExperience
from trueward.trainers.group_settings import Choices, GroupSettings
from trueward.trainers.groups import cut, describe_group, num_trained
from trueward.trainers.optim import device_of
from trueward.trainers.ppo_update import Updated
from trueward.trainers.step import Stepped, Trained, check_skips, take_step

__all__ = ["CORRECTIONS", "GroupObjective", "correct", "update_groups"]


def _uncorrected(seen: GroupExperience, settings: GroupSettings) -> ImportanceWeights:
    ones_BT = torch.ones_like(seen.old_logps_BT)
    return ImportanceWeights(zero_masked(ones_BT, seen.mask_BT), ones_BT, torch.zeros_like(seen.mask_BT))


def _truncated(seen: GroupExperience, settings: GroupSettings) -> ImportanceWeights:
    return truncated_importance(
        seen.old_logps_BT,
        seen.sampler_logps_BT,
        mask_BT=seen.mask_BT,
        cap=settings.importance_high,
        level=settings.importance_level,
    )


def _masked(seen: GroupExperience, settings: GroupSettings) -> ImportanceWeights:
    return masked_importance(
        seen.old_logps_BT,
        seen.sampler_logps_BT,
        mask_BT=seen.mask_BT,
        low=settings.importance_low,
        high=settings.importance_high,
        level=settings.importance_level,
    )


CORRECTIONS: Mapping[str, Callable[[GroupExperience, GroupSettings], ImportanceWeights]] = MappingProxyType(
    {"none": _uncorrected, "truncate": _truncated, "mask": _masked}
)
"""Weights for completions of another sampler, by name."""


def correct(seen: GroupExperience, settings: GroupSettings) -> tuple[Tensor, float]:
    """Importance weights of a round, and the share of tokens whose weight is not their ratio."""
    found = CORRECTIONS[settings.importance](seen, settings)
    return found.weights_BT, float(found.corrected_BT.sum() / seen.mask_BT.sum())


class GroupObjective:
    """The loss of one optimizer step.

    Args:
        advantages_BT: of the whole round, weights included in neither.
        weights_BT: importance weights of the whole round.
        items: the groups of this step, which its denominators count.
    """

    name = "group"

    def __init__(
        self,
        experience: GroupExperience,
        advantages_BT: Tensor,
        weights_BT: Tensor,
        *,
        settings: GroupSettings,
        choices: Choices,
        items: Sequence[int],
    ) -> None:
        self._experience, self._advantages_BT, self._weights_BT = experience, advantages_BT, weights_BT
        self._settings, self._choices = settings, choices
        self._totals = StepTotals(
            num_tokens=float(sum(num_trained(experience.groups[item]) for item in items)),
            num_sequences=float(len(items) * settings.completions_per_prompt),
            max_tokens=float(settings.max_new_tokens),
        )
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")

    def describe(self, item: int) -> Mapping[str, object]:
        rows = self._rows([item])
        tables = {"old_logps": self._experience.old_logps_BT, "advantages": self._advantages_BT}
        shown = {name: [[str(v) for v in row] for row in t[rows].tolist()] for name, t in tables.items()}
        return {**describe_group(self._experience.groups[item]), **shown}

    def count(self, items: Sequence[int]) -> float:
        """1: the reduction has divided by its own denominator already."""
        return 1.0

    def micro_batches(self, items: Sequence[int], max_tokens: int) -> list[list[int]]:
        return cut(items, lambda item: self._experience.groups[item], max_tokens)

    def _rows(self, items: Sequence[int]) -> list[int]:
        each = self._settings.completions_per_prompt
        return [item * each + completion for item in items for completion in range(each)]

    def loss(self, model: nn.Module, items: Sequence[int]) -> LossSum:
        seen, settings, choices = self._experience, self._settings, self._choices
        packed = pack([seen.groups[item] for item in items], device_of(model))
        first = settings.scored_by_update
        scores = score_completions(model, packed, temperature=settings.temperature, entropy=first)
        logps_BT, mask_BT = unflatten(scores.logps_N, packed), completion_mask(packed)
        rows, longest = self._rows(items), mask_BT.shape[1]
        if first:
            assert scores.entropy_N is not None, "entropy was asked for"
            seen.record(rows, logps_BT, unflatten(scores.entropy_N, packed), settings)
        old_logps_BT = seen.old_logps_BT[rows, :longest]
        policy = policy_surrogate(
            logps_BT,
            old_logps_BT,
            self._advantages_BT[rows, :longest],
            method=choices.method,
            mask_BT=mask_BT,
            clip_low=choices.clip_low,
            clip_high=choices.clip_high,
            dual_clip=choices.dual_clip,
        )
        loss_BT = self._weights_BT[rows, :longest] * policy.loss_BT
        if settings.kl_in == "loss" and settings.kl_coef > 0:
            assert seen.ref_logps_BT is not None, "settings were checked"
            ref_logps_BT = seen.ref_logps_BT[rows, :longest]
            estimate = kl.KL_ESTIMATORS[choices.kl_estimator]
            loss_BT = loss_BT + settings.kl_coef * zero_masked(estimate(logps_BT, ref_logps_BT), mask_BT)
        # The tokens were drawn from the old policy.
        moved_BT = zero_masked(kl.k3(old_logps_BT, logps_BT.detach()), mask_BT)
        count = float(packed.trained_N.sum())
        sums = {
            "policy_loss": policy.loss_BT,
            "clip_ratio/mean": policy.clipped_BT.float(),
            "policy_kl_old": moved_BT,
        }
        return LossSum(
            REDUCTIONS[choices.method.reduction](loss_BT, mask_BT, self._totals),
            packed.num_tokens,
            {name: (table_BT.detach().sum(), count) for name, table_BT in sums.items()},
        )


def update_groups(
    trained: Trained,
    objective: partial[GroupObjective],
    *,
    settings: GroupSettings,
    num_groups: int,
    iteration: int,
    skipped: int,
) -> Updated:
    """`epochs` passes over the groups in `minibatches` random parts each, fewer where there are fewer groups.

    Args:
        objective: takes the `items` of a step.
        num_groups: groups of this round; dynamic sampling may give fewer than were asked for.
        skipped: optimizer steps skipped in earlier iterations.

    Raises:
        RunError: more than `max_skips` steps were not finite.
    """
    steps: list[Stepped] = []
    each = settings.minibatches
    first = iteration * settings.epochs * each
    for epoch in range(settings.epochs):
        rng = generator(settings.seed, "minibatches", iteration, epoch)
        order = rng.permutation(num_groups)
        for number, part in enumerate(np.array_split(order, min(each, num_groups))):
            items = part.tolist()
            step = first + epoch * each + number
            stepped = take_step(
                trained,
                objective(items=items),
                items,
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
