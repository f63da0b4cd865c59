"""A strong reward model from a weak supervisor's labels, with the auxiliary confidence loss.

    loss = mean over pairs of (1 - alpha) CE(weak label) + alpha CE(own hard label)
    logit of a pair = r(first) - r(second)
Pairs are in no order: which completion is the first must not depend on the label. Axes: B pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from trueward.core.config import Config
from trueward.core.errors import DataError
from trueward.objectives.distill import weak_to_strong
from trueward.objectives.reward_model import accuracy
from trueward.trainers.accumulate import LossSum
from trueward.trainers.groups import cut, describe_group
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.reward import RewardPair, pair_rewards
from trueward.trainers.settings import TrainSettings

__all__ = ["WeakToStrongObjective", "WeakToStrongSettings", "alpha_at", "train_weak_to_strong"]

# A pair seen the other way round has the negative logit: half of all are above one half, whatever the model.
_THRESHOLD = 0.5


class WeakToStrongSettings(Config):
    """Settings of the auxiliary confidence loss; alpha 0 imitates the weak labels."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the student's own hard label (Burns et al. 2023: 0.5, 0.75 for the largest students)."""
    warmup_share: float = Field(0.2, ge=0, le=1)
    """Share of the steps over which alpha rises linearly from 0 (Burns et al. 2023, appendix A.4)."""


def alpha_at(settings: WeakToStrongSettings, step: int, num_steps: int) -> float:
    """Weight of the student's own label at `step` (from 0) of `num_steps`; of the step alone."""
    warmup = settings.warmup_share * num_steps
    return settings.alpha * (min(1.0, step / warmup) if warmup else 1.0)


class WeakToStrongObjective:
    """The confidence loss over pairs; `soft_label` is the supervisor's P(the first is better)."""

    name = "weak_to_strong"

    def __init__(self, settings: WeakToStrongSettings) -> None:
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")
        self._alpha: float | None = None

    def describe(self, item: RewardPair) -> Mapping[str, object]:
        return {**describe_group(item.group), "weak_label": item.soft_label}

    def count(self, items: Sequence[RewardPair]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[RewardPair], max_tokens: int) -> list[list[RewardPair]]:
        return cut(items, lambda pair: pair.group, max_tokens)

    def at(self, step: int, num_steps: int) -> None:
        """Set alpha for `step` of `num_steps`."""
        self._alpha = alpha_at(self._settings, step, num_steps)

    def loss(self, model: nn.Module, items: Sequence[RewardPair]) -> LossSum:
        assert self._alpha is not None, "the loop says which step it is"
        first_B, second_B, num_tokens = pair_rewards(model, items)
        weak_B = first_B.new_tensor([pair.soft_label for pair in items])
        logits_B = first_B - second_B
        out = weak_to_strong(logits_B, weak_B, alpha=self._alpha, threshold=_THRESHOLD)
        signs_B = torch.where(weak_B > _THRESHOLD, 1.0, -1.0)
        agreement_B = accuracy(signs_B * logits_B, torch.zeros_like(logits_B))
        figures = {
            "accuracy": agreement_B.sum(),
            "weak_to_strong/alpha": weak_B.new_tensor(self._alpha * len(items)),
        }
        return LossSum(out.loss_B.sum(), num_tokens, {k: (v, len(items)) for k, v in figures.items()})


def train_weak_to_strong(
    model: nn.Module,
    pairs: Sequence[RewardPair],
    *,
    settings: TrainSettings,
    confidence: WeakToStrongSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a sequence classifier with one label on a weak supervisor's labels; see `loop.train`.

    Args:
        pairs: `soft_label` is the supervisor's probability that the first completion is better; margins are
            not used.

    Raises:
        DataError: a pair without a label, or with a margin.
    """
    for pair in pairs:
        if pair.soft_label is None or pair.margin is not None:
            raise DataError(
                f"pair {pair.group.id or '(no id)'} is not labelled by a weak supervisor",
                value=(pair.soft_label, pair.margin),
                expected="a probability as soft_label, and no margin",
            )
    return train(
        model,
        objective=WeakToStrongObjective(confidence),
        items=pairs,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )
