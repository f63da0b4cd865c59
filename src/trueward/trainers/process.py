"""Process reward models: a score at the end of each step of a solution, on packed rows.

    loss = mean over labelled steps of the cross-entropy of right and wrong, or of negative, neutral, positive
An outcome reward model is the same with one label, at the end (`data.steps.outcome_label`).
Axes: S steps of a packed row, C classes, N completion tokens, L tokens of the row.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trueward.core.config import Config
from trueward.core.errors import DataError
from trueward.data.steps import StepGroup
from trueward.models.heads import reward_from_causal
from trueward.models.packing import Packed, pack
from trueward.models.scoring import hidden_states, unwrap
from trueward.objectives import STEP_CLASSES, step_binary, step_classes
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "ProcessObjective",
    "ProcessSettings",
    "evaluate_steps",
    "score_steps",
    "step_scorer",
    "train_process",
]


class ProcessSettings(Config):
    """Settings of the process objective."""

    method: Literal["binary", "classes"] = "binary"
    """`binary`: right or wrong. `classes`: negative, neutral, positive."""
    neutral_is_right: bool = True
    """Whether a neutral step counts as right, as a label of `binary` and in scores (Lightman et al. 2023,
    section 2.6 and appendix F)."""
    estimation: Literal["hard", "soft"] = "hard"
    """What labels from rollouts say of a step: `hard`, right if any rollout from it ends right; `soft`, the
    share of them that do (Wang et al. 2024, 2312.08935, eq. 3 and 4)."""

    @model_validator(mode="after")
    def _shares_are_binary(self) -> Self:
        if self.estimation == "soft" and self.method != "binary":
            raise ValueError(f"estimation 'soft' needs method 'binary', got {self.method!r}")
        return self

    def right(self, label: int) -> bool:
        """Whether a step of this label counts as right."""
        return label >= (0 if self.neutral_is_right else 1)

    def targets(self, item: StepGroup) -> list[float | None]:
        """Probability of each step of a solution to be right, as it is learnt; None where there is none.

        Raises:
            DataError: soft labels are asked for and there are none.
        """
        if self.estimation == "soft":
            if item.soft_labels is None:
                raise DataError(
                    f"solution {item.group.id or '(no id)'} has no soft labels",
                    expected="labels from rollouts",
                    remedy="set estimation to hard",
                )
            return list(item.soft_labels)
        return [None if label is None else float(self.right(label)) for label in item.labels]


def step_scorer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: ProcessSettings, *, seed: int
) -> PreTrainedModel:
    """A model of steps: a copy of a causal model's backbone under a head of one score, or of three.

    Raises:
        ModelError: as `reward_from_causal`.
    """
    scorer = reward_from_causal(model, tokenizer, seed=seed)
    if settings.method == "classes":
        weight_1D = scorer.get_parameter("score.weight")
        width, rng = weight_1D.shape[1], torch.Generator().manual_seed(seed)
        score = nn.Linear(width, len(STEP_CLASSES), bias=False, dtype=weight_1D.dtype)
        with torch.no_grad():
            score.weight.copy_(torch.randn(len(STEP_CLASSES), width, generator=rng) * weight_1D.std().cpu())
        scorer.set_submodule("score", score.to(weight_1D.device))
        scorer.config.num_labels = len(STEP_CLASSES)
    return scorer


def _logits(model: nn.Module, packed: Packed) -> Tensor:
    """Scores at the end of every step: logits_SC, float32, solution by solution."""
    ends_SD = hidden_states(model, packed, packed.position_N[packed.trained_N])
    with torch.autocast(ends_SD.device.type, enabled=False):
        logits_SC: Tensor = unwrap(model).get_submodule("score")(ends_SD.float())
    return logits_SC


class ProcessObjective:
    """Cross-entropy at step ends; every labelled step of the optimizer step weighs the same."""

    name = "process"

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")

    def describe(self, item: StepGroup) -> Mapping[str, object]:
        soft = {} if item.soft_labels is None else {"soft_labels": list(item.soft_labels)}
        return {**describe_group(item.group), "labels": list(item.labels), **soft}

    def _targets(self, items: Sequence[StepGroup]) -> list[float | None]:
        return [target for item in items for target in self._settings.targets(item)]

    def count(self, items: Sequence[StepGroup]) -> float:
        return sum(target is not None for target in self._targets(items))

    def micro_batches(self, items: Sequence[StepGroup], max_tokens: int) -> list[list[StepGroup]]:
        return cut(items, lambda item: item.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[StepGroup]) -> LossSum:
        packed = pack([item.group for item in items], device_of(model))
        logits_SC, targets = _logits(model, packed), self._targets(items)
        # One row of S steps; those without a label are masked.
        ends_1S = torch.tensor([[target is not None for target in targets]], device=logits_SC.device)
        targets_1S = torch.tensor([[target or 0.0 for target in targets]], device=logits_SC.device)
        if self._settings.method == "binary":
            out = step_binary(logits_SC.T, targets_1S, ends_1S)
        else:
            neutral = self._settings.neutral_is_right
            classes = [[(label or 0) + 1 for item in items for label in item.labels]]
            labels_1S = torch.tensor(classes, device=logits_SC.device)
            out = step_classes(logits_SC.unsqueeze(0), labels_1S, ends_1S, neutral_is_correct=neutral)
        hits = ((out.correct_logps_BT > math.log(0.5)) == (targets_1S > 0.5)) & ends_1S
        return LossSum(
            out.loss_BT.sum(), packed.num_tokens, {"step_accuracy": (hits.sum().float(), self.count(items))}
        )


def train_process(
    model: nn.Module,
    items: Sequence[StepGroup],
    *,
    settings: TrainSettings,
    process: ProcessSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a model of `step_scorer` on solutions; see `loop.train`.

    Raises:
        DataError: a solution without a label; and as `loop.train`.
    """
    for item in items:
        if all(target is None for target in process.targets(item)):
            raise DataError(
                f"no step of solution {item.group.id or '(no id)'} has a label",
                value=f"{len(item.labels)} steps",
                remedy="leave it out and count it",
            )
    return train(
        model,
        objective=ProcessObjective(process),
        items=items,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )


@torch.no_grad()
def score_steps(
    model: nn.Module,
    items: Sequence[StepGroup],
    *,
    process: ProcessSettings,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> list[tuple[float, ...]]:
    """Log-probability of each step of each solution that it is right, labelled or not."""
    found: list[tuple[float, ...]] = []
    for batch in cut(items, lambda item: item.group, max_tokens_per_forward):
        packed = pack([item.group for item in batch], device_of(model))
        with forward_precision(precision, device_of(model)):
            logits_SC = _logits(model, packed)
        if process.method == "binary":
            logps = nn.functional.logsigmoid(logits_SC[:, 0]).tolist()
        else:
            first = STEP_CLASSES.index("neutral" if process.neutral_is_right else "positive")
            # A sum of probabilities that rounds above 1 would be no log-probability.
            logps = logits_SC.log_softmax(-1)[:, first:].logsumexp(-1).clamp(max=0.0).tolist()
        for item in batch:
            size = len(item.labels)
            found.append(tuple(logps[:size]))
            logps = logps[size:]
    return found


@torch.no_grad()
def evaluate_steps(
    model: nn.Module,
    items: Sequence[StepGroup],
    *,
    process: ProcessSettings,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> dict[str, float]:
    """`eval/loss` and `eval/step_accuracy` of labelled steps, each step weighing the same.

    Raises:
        DataError: no step has a label.
    """
    objective = ProcessObjective(process)
    count = objective.count(items)
    if not count:
        raise DataError("no held-out step has a label", value=f"{len(items)} solutions")
    loss = hits = 0.0
    for batch in cut(items, lambda item: item.group, max_tokens_per_forward):
        with forward_precision(precision, device_of(model)):
            out = objective.loss(model, batch)
        loss, hits = loss + float(out.loss_sum), hits + float(out.sums["step_accuracy"][0])
    return {"eval/loss": loss / count, "eval/step_accuracy": hits / count}
