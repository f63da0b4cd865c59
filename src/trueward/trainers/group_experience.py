"""What the group trainer knows about the completions of a round: log-probs and entropy.

There is no value head: the other completions of a prompt are the baseline. Where a round has one optimizer
step, the policy that sampled is the policy that is trained: its log-probs come from the update's forward.
Axes: B sequences (prompt by prompt, completion by completion), T tokens, N tokens of a packed row; b, t of
some rows.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trueward.core.errors import RunError
from trueward.data.chat import TokenGroup
from trueward.models.packing import Packed, pack, unflatten
from trueward.models.scoring import TokenScores, reference, score_completions
from trueward.rollouts.engine import Rollout
from trueward.trainers.accumulate import forward_precision
from trueward.trainers.experience import Role
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.groups import cut, rollout_groups
from trueward.trainers.optim import device_of

__all__ = ["GroupExperience", "GroupModels", "gather", "group_models", "score_policy"]


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
    """A round's completions. Tables are float32 without gradient, 0 where padded.

    groups: prompts with their completions; row `g * completions_per_prompt + c` of a table is completion c of
        g.
    old_logps_BT: the trainer's own log-probs of the policy that sampled, and `entropy_BT` its entropies; 0
        until they are recorded.
    sampler_logps_BT: the engine's, which drew them.
    ref_logps_BT: the reference's; None without one.
    """

    groups: tuple[TokenGroup, ...]
    rollouts: tuple[Rollout, ...]
    mask_BT: Tensor
    old_logps_BT: Tensor
    sampler_logps_BT: Tensor
    ref_logps_BT: Tensor | None
    entropy_BT: Tensor

    @property
    def sampler_gap(self) -> float:
        """Largest |sampler - trainer| token log-prob, nats."""
        return float((self.sampler_logps_BT - self.old_logps_BT).abs().max())

    def record(
        self, rows: Sequence[int], logps_bt: Tensor, entropy_bt: Tensor, settings: GroupSettings
    ) -> None:
        """Take what the policy that sampled says of some rows, which may be padded to fewer tokens.

        Raises:
            RunError: sampler and trainer disagree by more than `max_sampler_gap`.
        """
        longest = logps_bt.shape[1]
        self.old_logps_BT[rows, :longest] = logps_bt.detach()
        self.entropy_BT[rows, :longest] = entropy_bt.detach()
        gap = float((self.sampler_logps_BT[rows] - self.old_logps_BT[rows]).abs().max())
        if not gap <= settings.max_sampler_gap:
            raise RunError(
                "the engine that sampled and the trainer disagree about a token's log-prob",
                value=f"{gap:.4g} nats",
                expected=f"at most {settings.max_sampler_gap:g} (max_sampler_gap)",
                remedy="both must hold the same weights, temperature and precision; another engine or "
                "bfloat16 needs a wider bound, and importance: truncate",
            )


def gather(
    models: GroupModels, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout], settings: GroupSettings
) -> GroupExperience:
    """The completions of a round, scored under the reference, not yet under the policy."""
    device = device_of(models.policy)
    sampler_BT = pad_sequence([torch.tensor(r.logps) for r in rollouts], batch_first=True).to(device)
    mask_BT = pad_sequence([torch.ones(len(r.ids), dtype=torch.bool) for r in rollouts], batch_first=True)
    seen = GroupExperience(
        groups=tuple(rollout_groups(prompts, rollouts)),
        rollouts=tuple(rollouts),
        mask_BT=mask_BT.to(device),
        old_logps_BT=torch.zeros_like(sampler_BT),
        sampler_logps_BT=sampler_BT,
        ref_logps_BT=None if models.ref is None else torch.zeros_like(sampler_BT),
        entropy_BT=torch.zeros_like(sampler_BT),
    )
    if models.ref is not None and seen.ref_logps_BT is not None:
        with models.ref() as ref:
            for rows, packed, scores in _scored(ref, seen, settings):
                logps_bt = unflatten(scores.logps_N, packed)
                seen.ref_logps_BT[rows, : logps_bt.shape[1]] = logps_bt
    return seen


def score_policy(models: GroupModels, seen: GroupExperience, settings: GroupSettings) -> None:
    """Record what the policy says of all completions.

    Raises:
        RunError: sampler and trainer disagree by more than `max_sampler_gap`.
    """
    for rows, packed, scores in _scored(models.policy, seen, settings, entropy=True):
        assert scores.entropy_N is not None, "entropy was asked for"
        seen.record(rows, unflatten(scores.logps_N, packed), unflatten(scores.entropy_N, packed), settings)


def _scored(
    model: nn.Module, seen: GroupExperience, settings: GroupSettings, *, entropy: bool = False
) -> Iterator[tuple[range, Packed, TokenScores]]:
    """Rows of the tables, forward by forward, without gradient."""
    device, first = device_of(model), 0
    for groups in cut(seen.groups, lambda group: group, settings.max_tokens_per_forward):
        packed = pack(groups, device)
        with torch.no_grad(), forward_precision(settings.precision, device):
            scores = score_completions(model, packed, temperature=settings.temperature, entropy=entropy)
        yield range(first, first + packed.num_sequences), packed, scores
        first += packed.num_sequences
