"""Reward models from comparisons: Bradley-Terry on packed pairs that share their prompt.

    loss = mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin), with soft labels and centering
Axes: B pairs, S sequences (chosen and rejected in turn).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from trueward.core.config import Config
from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.models.packing import pack
from trueward.models.scoring import hidden_states, sequence_rewards
from trueward.objectives import bradley_terry
from trueward.rollouts.engine import Rollout
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group, rollout_groups
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "RewardObjective",
    "RewardPair",
    "RewardSettings",
    "pair_rewards",
    "reward_function",
    "score_pairs",
    "train_reward",
]


class RewardSettings(Config):
    """Settings of the reward objective."""

    centering: float = Field(0.01, ge=0)
    """Coefficient of (r_chosen + r_rejected)^2, which ties down the free offset (Eisenstein et al. 2023)."""


@dataclass(frozen=True, slots=True)
class RewardPair:
    """A comparison as tokens. group: chosen, then rejected.

    margin: by how much chosen should win, reward units; None is 0.
    soft_label: probability that chosen is the better one, 0.5 is a tie; None is 1.
    """

    group: TokenGroup
    margin: float | None = None
    soft_label: float | None = None


class RewardObjective:
    """Bradley-Terry over pairs; every pair of the step weighs the same."""

    name = "reward"

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")

    def describe(self, item: RewardPair) -> Mapping[str, object]:
        return {**describe_group(item.group), "margin": item.margin, "soft_label": item.soft_label}

    def count(self, items: Sequence[RewardPair]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[RewardPair], max_tokens: int) -> list[list[RewardPair]]:
        return cut(items, lambda pair: pair.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[RewardPair]) -> LossSum:
        chosen_B, rejected_B, num_tokens = pair_rewards(model, items)
        out = bradley_terry(
            chosen_B,
            rejected_B,
            margin_B=chosen_B.new_tensor([pair.margin or 0.0 for pair in items]),
            target_B=chosen_B.new_tensor([_label(pair) for pair in items]),
            center=self._settings.centering,
        )
        figures_B = {
            "accuracy": out.accuracies_B,
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "rewards/margins": out.margins_B,
        }
        return LossSum(out.loss_B.sum(), num_tokens, {k: (v.sum(), len(items)) for k, v in figures_B.items()})


def _label(pair: RewardPair) -> float:
    return 1.0 if pair.soft_label is None else pair.soft_label


def pair_rewards(model: nn.Module, pairs: Sequence[RewardPair]) -> tuple[Tensor, Tensor, int]:
    """chosen_B, rejected_B and the tokens of the forward.

    Raises:
        DataError: a group does not hold exactly two completions.
    """
    for pair in pairs:
        if len(pair.group.completions) != 2:
            raise DataError(
                f"pair {pair.group.id or '(no id)'} does not hold two completions",
                value=len(pair.group.completions),
                expected="chosen, then rejected",
            )
    packed = pack([pair.group for pair in pairs], device_of(model))
    hidden_SD = hidden_states(model, packed, packed.last_S)
    # The score itself stays float32: in bfloat16 two completions of a score near 4 differ by 0.03 or not at
    # all.
    with torch.autocast(hidden_SD.device.type, enabled=False):
        rewards_B2 = sequence_rewards(model, packed, hidden_SD=hidden_SD.float()).view(-1, 2)
    return rewards_B2[:, 0], rewards_B2[:, 1], packed.num_tokens


def train_reward(
    model: nn.Module,
    pairs: Sequence[RewardPair],
    *,
    settings: TrainSettings,
    reward: RewardSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a sequence classifier with one label on comparisons; see `loop.train`.

    Raises:
        DataError: a margin that is not finite, or a soft label outside of 0 to 1.
    """
    for pair in pairs:
        if not (math.isfinite(pair.margin or 0.0) and 0 <= _label(pair) <= 1):
            raise DataError(
                f"pair {pair.group.id or '(no id)'} has a margin or a soft label that cannot be trained on",
                value=(pair.margin, pair.soft_label),
                expected="a finite margin, a soft label from 0 to 1, or None",
            )
    return train(
        model,
        objective=RewardObjective(reward),
        items=pairs,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )


def reward_function(
    model: nn.Module,
    *,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
    scope: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Callable[[Sequence[TokenGroup], Sequence[Rollout]], list[float]]:
    """A reward model as the reward of reinforcement learning: raw scores, not normalised.

    The model must have the tokenizer and chat template of the policy: it reads the very ids that were drawn.

    Args:
        scope: where the model is the reward model: `SharedReward.active` where its backbone has other roles.
    """

    @torch.no_grad()
    def score(prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        groups = rollout_groups(prompts, rollouts)
        scores: list[float] = []
        for batch in cut(groups, lambda group: group, max_tokens_per_forward):
            packed = pack(batch, device_of(model))
            with scope(), forward_precision(precision, device_of(model)):
                hidden_SD = hidden_states(model, packed, packed.last_S)
            scores.extend(sequence_rewards(model, packed, hidden_SD=hidden_SD.float()).tolist())
        return scores

    return score


@torch.no_grad()
def score_pairs(
    model: nn.Module,
    pairs: Sequence[RewardPair],
    *,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected completions, pair by pair; `trueward.evals` judges them.

    Raises:
        DataError: a group does not hold exactly two completions.
    """
    chosen: list[float] = []
    rejected: list[float] = []
    for batch in cut(pairs, lambda pair: pair.group, max_tokens_per_forward):
        with forward_precision(precision, device_of(model)):
            chosen_B, rejected_B, _ = pair_rewards(model, batch)
        chosen += chosen_B.tolist()
        rejected += rejected_B.tolist()
    return chosen, rejected
