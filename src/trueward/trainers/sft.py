"""Supervised fine-tuning, and pretraining: the same objective over demonstrations and over windows of running
text.

    loss = sum over trained tokens of -log p(token | before) / number of trained tokens of the step
Axes: N completion tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.models.packing import pack
from trueward.models.scoring import score_completions
from trueward.objectives import sft
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group, num_trained
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision, TrainSettings

__all__ = ["SFTEvaluation", "SFTObjective", "evaluate_sft", "train_sft"]


class SFTObjective:
    """Negative log-likelihood of the trained tokens; every token of the step weighs the same."""

    name = "sft"
    settings: Mapping[str, object] = {}

    def describe(self, item: TokenGroup) -> Mapping[str, object]:
        return describe_group(item)

    def count(self, items: Sequence[TokenGroup]) -> float:
        return sum(map(num_trained, items))

    def micro_batches(self, items: Sequence[TokenGroup], max_tokens: int) -> list[list[TokenGroup]]:
        return cut(items, lambda group: group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[TokenGroup]) -> LossSum:
        packed = pack(items, device_of(model))
        scores = score_completions(model, packed)
        # One row of N tokens: the objective is per token, so sequences need no padding.
        loss_1N = sft(scores.logps_N.unsqueeze(0), packed.trained_N.unsqueeze(0)).loss_BT
        hits = (scores.greedy_N & packed.trained_N).sum().float()
        return LossSum(loss_1N.sum(), packed.num_tokens, {"mean_token_accuracy": (hits, self.count(items))})


def train_sft(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    settings: TrainSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train on demonstrations or text windows; see `loop.train`."""
    return train(
        model,
        objective=SFTObjective(),
        items=groups,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )


class SFTEvaluation(NamedTuple):
    """Held-out figures over all trained tokens: mean loss in nats, and how many the model would have
    chosen."""

    loss: float
    mean_token_accuracy: float
    num_tokens: int

    def metrics(self) -> dict[str, float]:
        return {"eval/loss": self.loss, "eval/mean_token_accuracy": self.mean_token_accuracy}


@torch.no_grad()
def evaluate_sft(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> SFTEvaluation:
    """Loss and accuracy per trained token of held-out groups.

    Raises:
        DataError: nothing to evaluate on.
    """
    objective = SFTObjective()
    num_tokens = int(objective.count(groups))
    if num_tokens == 0:
        raise DataError("there is no held-out token to evaluate on", remedy="check the split")
    loss = hits = 0.0
    for batch in objective.micro_batches(groups, max_tokens_per_forward):
        with forward_precision(precision, device_of(model)):
            out = objective.loss(model, batch)
        loss += float(out.loss_sum)
        hits += float(out.sums["mean_token_accuracy"][0])
    return SFTEvaluation(loss / num_tokens, hits / num_tokens, num_tokens)
