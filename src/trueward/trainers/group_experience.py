"""What the group trainer knows about the completions of a round before it updates: log-probs and entropy.

There is no value head: the other completions of a prompt are the baseline.
Axes: B sequences (prompt by prompt, completion by completion), T tokens, N tokens of a packed row.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from trueward.core.errors import RunError
from trueward.data.chat import TokenGroup
from trueward.models.packing import Packed, completion_mask, pack, unflatten
from trueward.models.scoring import reference, score_completions
from trueward.rollouts.engine import Rollout
from trueward.trainers.accumulate import forward_precision
from trueward.trainers.experience import Role
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.groups import cut, rollout_groups
from trueward.trainers.optim import device_of

__all__ = ["GroupExperience", "GroupModels", "group_models", "score_groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupModels:
    """The roles.

    ref: the reference, which nothing trains; None where the run has none.
    frozen: the model that holds the reference; None is the policy with its adapters off, or no reference.
    """

    policy: nn.Module
    ref: Role | None
    frozen: nn.Module | None


def group_models(policy: nn.Module, settings: GroupSettings, *, ref: nn.Module | None = None) -> GroupModels:
    """Build the roles around a policy as it is before the first iteration (also when resuming).

    Args:
        ref: the reference; None takes the policy itself: its adapters off, or a frozen copy.
    """
    if not settings.reference:
        return GroupModels(policy=policy, ref=None, frozen=None)
    if ref is None and isinstance(policy, PeftModel):
        return GroupModels(policy=policy, ref=partial(reference, policy), frozen=None)
    frozen = copy.deepcopy(policy) if ref is None else ref
    frozen.requires_grad_(False).eval()
    return GroupModels(policy=policy, ref=lambda: nullcontext(frozen), frozen=frozen)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupExperience:
    """A round's completions, scored before the update. Tables are float32 without gradient, 0 where padded.

    groups: prompts with their completions; row `g * completions_per_prompt + c` of a table is completion c of
        g.
    old_logps_BT: the trainer's own log-probs of the policy that sampled.
    sampler_logps_BT: the engine's, which drew them.
    ref_logps_BT: the reference's; None without one.
    sampler_gap: largest |sampler - trainer| token log-prob.
    """

    groups: tuple[TokenGroup, ...]
    rollouts: tuple[Rollout, ...]
    mask_BT: Tensor
    old_logps_BT: Tensor
    sampler_logps_BT: Tensor
    ref_logps_BT: Tensor | None
    entropy_BT: Tensor
    sampler_gap: float


@torch.no_grad()
def score_groups(
    models: GroupModels, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout], settings: GroupSettings
) -> GroupExperience:
    """Score the completions of a round under policy and reference.

    Raises:
        RunError: sampler and trainer disagree by more than `max_sampler_gap`.
    """
    groups = rollout_groups(prompts, rollouts)
    device = device_of(models.policy)
    columns: list[list[Tensor]] = []
    for batch in cut(groups, lambda group: group, settings.max_tokens_per_forward):
        packed = pack(batch, device)
        with forward_precision(settings.precision, device):
            scored = score_completions(models.policy, packed, temperature=settings.temperature, entropy=True)
            ref_N = _reference_logps(models, packed, settings.temperature)
        assert scored.entropy_N is not None, "entropy was asked for"
        values = [scored.logps_N, scored.entropy_N, *([] if ref_N is None else [ref_N])]
        columns.append([completion_mask(packed), *(unflatten(value_N, packed) for value_N in values)])
    mask_BT, old_BT, entropy_BT, *rest = _joined(columns)
    sampler_BT = pad_sequence([torch.tensor(r.logps, device=device) for r in rollouts], batch_first=True)
    return GroupExperience(
        groups=tuple(groups),
        rollouts=tuple(rollouts),
        mask_BT=mask_BT,
        old_logps_BT=old_BT,
        sampler_logps_BT=sampler_BT,
        ref_logps_BT=rest[0] if rest else None,
        entropy_BT=entropy_BT,
        sampler_gap=_checked_gap(sampler_BT, old_BT, settings),
    )


def _reference_logps(models: GroupModels, packed: Packed, temperature: float) -> Tensor | None:
    if models.ref is None:
        return None
    with models.ref() as ref:
        return score_completions(ref, packed, temperature=temperature).logps_N


def _joined(columns: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Tables of forwards, padded to the longest, one below the other."""
    longest = max(tables[0].shape[1] for tables in columns)
    return [
        torch.cat([pad(table_BT, (0, longest - table_BT.shape[1])) for table_BT in column])
        for column in zip(*columns, strict=True)
    ]


def _checked_gap(sampler_BT: Tensor, old_BT: Tensor, settings: GroupSettings) -> float:
    gap = float((sampler_BT - old_BT).abs().max())
    if not gap <= settings.max_sampler_gap:
        raise RunError(
            "the engine that sampled and the trainer disagree about a token's log-prob",
            value=f"{gap:.4g} nats",
            expected=f"at most {settings.max_sampler_gap:g} (max_sampler_gap)",
            remedy="both must hold the same weights, temperature and precision; another engine or bfloat16 "
            "needs a wider bound, and importance: truncate",
        )
    return gap
