"""What PPO knows about the completions of one iteration before it updates: log-probs, values, reference.

Axes: C critics (the reward's, then the cost's under a constraint), B sequences (prompt by prompt, completion
by completion), T tokens, N tokens of a packed row, L its length.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from trueward.core.errors import RunError
from trueward.data.chat import TokenGroup
from trueward.models.heads import ValueHead
from trueward.models.packing import Packed, completion_mask, pack, unflatten
from trueward.models.scoring import (
    TokenScores,
    hidden_states,
    reference,
    score_completions,
    token_values,
    unwrap,
)
from trueward.rollouts.engine import Rollout
from trueward.trainers.accumulate import forward_precision
from trueward.trainers.drawing import finite_scores
from trueward.trainers.groups import cut, rollout_groups
from trueward.trainers.optim import device_of
from trueward.trainers.ppo_settings import PPOSettings

__all__ = [
    "Constraint",
    "Experience",
    "PPOModels",
    "RewardFunction",
    "Role",
    "policy_and_values",
    "ppo_models",
    "score_rollouts",
    "scores_of",
    "values_table",
]

RewardFunction = Callable[[Sequence[TokenGroup], Sequence[Rollout]], Sequence[float]]
"""Scores of rollouts, in their order; `prompts[rollout.prompt]` has the ids and the id of the prompt."""


Role = Callable[[], AbstractContextManager[nn.Module]]
"""A model as one of its roles, for as long as the context lasts: adapters are switched in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """What Safe RLHF bounds. cost: of each completion, more is worse.

    value_head: expects the cost, as the policy's value head the reward.
    """

    cost: RewardFunction
    value_head: nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOModels:
    """The roles of PPO; the reward, which need not be a model, is a function of its own.

    value_backbone: trunk of the value head; None is the policy's own.
    ref: the reference, which nothing trains.
    frozen: the model that holds the reference; None is the policy with its adapters off.
    demonstrations: what PPO-ptx imitates beside.
    constraint: cost and its value function; None bounds nothing.
    """

    policy: nn.Module
    value_head: nn.Module
    value_backbone: nn.Module | None
    ref: Role
    frozen: nn.Module | None
    demonstrations: tuple[TokenGroup, ...] = ()
    constraint: Constraint | None = None

    @property
    def value_heads(self) -> tuple[nn.Module, ...]:
        """One a critic, all on one trunk."""
        return (self.value_head, *([self.constraint.value_head] if self.constraint else []))

    def trained(self) -> nn.ModuleDict:
        """Everything that the optimizer moves, as one module."""
        parts = {"policy": self.policy, "value_head": self.value_head}
        if self.value_backbone is not None:
            parts["value_backbone"] = self.value_backbone
        if self.constraint is not None:
            parts["cost_value_head"] = self.constraint.value_head
        return nn.ModuleDict(parts)


def ppo_models(
    policy: nn.Module,
    settings: PPOSettings,
    *,
    ref: nn.Module | None = None,
    backbone: PeftModel | None = None,
    value_backbone: nn.Module | None = None,
    demonstrations: Sequence[TokenGroup] = (),
    cost: RewardFunction | None = None,
) -> PPOModels:
    """Build the roles around a policy as it is before the first iteration (also when resuming).

    Args:
        ref: the reference; None takes the policy itself: its adapters off, or a frozen copy.
        backbone: in place of `ref`, a model that is the reference while its adapters are off (see
            `models.attach_reward`, whose adapters they are).
        value_backbone: for `separate`: a causal model or reward model to start from; None copies the policy.
        demonstrations: for `ptx_coef`: what each optimizer step imitates a batch of.
        cost: for `constraint`: what the bound is on.

    Raises:
        ValueError: both a reference and a backbone; demonstrations without `ptx_coef`, or it without them; a
            cost without `constraint`, or it without a cost.
    """
    if (cost is None) != (settings.constraint is None):
        raise ValueError(
            f"a cost and a constraint go together, got {'no cost' if cost is None else 'a cost'} with "
            f"constraint {settings.constraint}"
        )
    if bool(demonstrations) != (settings.ptx_coef > 0):
        raise ValueError(
            "demonstrations are for a ptx_coef above 0, which needs some, got "
            f"{len(demonstrations)} with ptx_coef {settings.ptx_coef:g}"
        )
    if ref is not None and backbone is not None:
        raise ValueError("ref and backbone exclude each other: both hold the reference")
    if ref is None and backbone is None:
        if isinstance(policy, PeftModel):
            backbone = policy
        else:
            ref = copy.deepcopy(policy)
    if settings.value_backbone == "shared":
        trunk = None
    else:
        trunk = copy.deepcopy(policy) if value_backbone is None else value_backbone
    width = unwrap(policy if trunk is None else trunk).config.get_text_config().hidden_size
    head, cost_head = (ValueHead(width).to(device_of(policy)) for _ in range(2))
    role, frozen = _reference_role(policy, ref, backbone)
    return PPOModels(
        policy=policy,
        value_head=head,
        value_backbone=trunk,
        ref=role,
        frozen=frozen,
        demonstrations=tuple(demonstrations),
        constraint=None if cost is None else Constraint(cost=cost, value_head=cost_head),
    )


def _reference_role(
    policy: nn.Module, ref: nn.Module | None, backbone: PeftModel | None
) -> tuple[Role, nn.Module | None]:
    if backbone is None:
        assert ref is not None, "one of them holds the reference"
        frozen = ref.requires_grad_(False).eval()
        return lambda: nullcontext(frozen), frozen
    return partial(reference, backbone), None if backbone is policy else backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """One iteration's completions, scored before the update. Tables are float32 without gradient, 0 where
    padded.

    groups: prompts with their completions; row `g * completions_per_prompt + c` of a table is completion c of
        g.
    old_logps_BT: the trainer's own log-probs of the policy that sampled.
    sampler_gap: largest |sampler - trainer| token log-prob.
    """

    groups: tuple[TokenGroup, ...]
    rollouts: tuple[Rollout, ...]
    mask_BT: Tensor
    old_logps_BT: Tensor
    ref_logps_BT: Tensor
    old_values_CBT: Tensor
    entropy_BT: Tensor
    sampler_gap: float


class _Part(NamedTuple):
    mask_BT: Tensor
    old_logps_BT: Tensor
    ref_logps_BT: Tensor
    old_values_CBT: Tensor
    entropy_BT: Tensor


def policy_and_values(
    models: PPOModels, packed: Packed, *, temperature: float, entropy: bool = False
) -> tuple[TokenScores, Tensor]:
    """Log-probs of the policy and values_CN, from one forward where the trunk is shared."""
    hidden_ND = hidden_states(models.policy, packed, packed.predict_N)
    scores = score_completions(
        models.policy, packed, temperature=temperature, entropy=entropy, hidden_ND=hidden_ND
    )
    trunk_ND = hidden_ND
    if models.value_backbone is not None:
        trunk_ND = hidden_states(models.value_backbone, packed, packed.predict_N)
    # Values are regressed on: bfloat16's three digits would be their error.
    with torch.autocast(hidden_ND.device.type, enabled=False):
        values = [token_values(head, trunk_ND.float()) for head in models.value_heads]
    return scores, torch.stack(values)


def values_table(values_CN: Tensor, packed: Packed) -> Tensor:
    """values_CBT, 0 where padded."""
    return torch.stack([unflatten(values_N, packed) for values_N in values_CN])


@torch.no_grad()
def score_rollouts(
    models: PPOModels, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout], settings: PPOSettings
) -> Experience:
    """Score the completions of an iteration under policy, reference and value head.

    Raises:
        RunError: sampler and trainer disagree by more than `max_sampler_gap`.
    """
    groups = rollout_groups(prompts, rollouts)
    device = device_of(models.policy)
    parts: list[_Part] = []
    for batch in cut(groups, lambda group: group, settings.max_tokens_per_forward):
        packed = pack(batch, device)
        with forward_precision(settings.precision, device):
            scores, values_CN = policy_and_values(
                models, packed, temperature=settings.temperature, entropy=True
            )
            with models.ref() as ref:
                ref_logps_N = score_completions(ref, packed, temperature=settings.temperature).logps_N
        assert scores.entropy_N is not None, "entropy was asked for"
        parts.append(
            _Part(
                mask_BT=completion_mask(packed),
                old_logps_BT=unflatten(scores.logps_N, packed),
                ref_logps_BT=unflatten(ref_logps_N, packed),
                old_values_CBT=values_table(values_CN, packed),
                entropy_BT=unflatten(scores.entropy_N, packed),
            )
        )
    longest = max(part.mask_BT.shape[1] for part in parts)
    tables = [
        torch.cat([pad(table, (0, longest - table.shape[-1])) for table in column], dim=-2)
        for column in zip(*parts, strict=True)
    ]
    joined = _Part(*tables)
    sampler_BT = pad_sequence([torch.tensor(r.logps, device=device) for r in rollouts], batch_first=True)
    gap = float((sampler_BT - joined.old_logps_BT).abs().max())
    if not gap <= settings.max_sampler_gap:
        raise RunError(
            "the engine that sampled and the trainer disagree about a token's log-prob",
            value=f"{gap:.4g} nats",
            expected=f"at most {settings.max_sampler_gap:g} (max_sampler_gap)",
            remedy="both must hold the same weights, temperature and precision; bfloat16 needs a wider bound",
        )
    return Experience(groups=tuple(groups), rollouts=tuple(rollouts), sampler_gap=gap, **joined._asdict())


def scores_of(
    reward: RewardFunction, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout], *, name: str
) -> Tensor:
    """Scores of the rollouts, scores_B float32 on the CPU.

    Raises:
        RunError: another number of scores than rollouts, or one that is not finite.
    """
    scores = list(reward(prompts, rollouts))
    remedy = "mend the reward function; a completion that cannot be scored needs a score of its own"
    finite_scores(scores, rollouts, name=name, remedy=remedy)
    return torch.tensor([float(score) for score in scores], dtype=torch.float32)
