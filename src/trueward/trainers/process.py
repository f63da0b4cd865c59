"""Process reward models: a score at the end of each step of a solution, on packed rows.

    loss = mean over labelled steps of the cross-entropy of right and wrong, or of negative, neutral, positive
An outcome reward model is the same with one label, at the end (`data.steps.outcome_label`).
Axes: S steps of a packed row, C classes, N completion tokens, L tokens of the row.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trueward.core.config import Config
from trueward.core.errors import DataError
from trueward.core.seed import generator
from trueward.core.stats import Estimate
from trueward.data.steps import StepGroup
from trueward.models.heads import reward_from_causal
from trueward.models.packing import Packed, pack
from trueward.models.scoring import hidden_states, unwrap
from trueward.objectives import STEP_AGGREGATIONS, STEP_CLASSES, step_binary, step_classes
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "ProcessEvaluation",
    "ProcessObjective",
    "ProcessSettings",
    "best_of_n",
    "evaluate_process",
    "score_steps",
    "step_scorer",
    "train_process",
]

_RESAMPLES = 1000


class ProcessSettings(Config):
    """Settings of the process objective."""

    method: Literal["binary", "classes"] = "binary"
    """`binary`: right or wrong. `classes`: negative, neutral, positive."""
    neutral_is_right: bool = True
    """Whether a neutral step counts as right, as a label of `binary` and in scores (Lightman et al. 2023,
    section 2.6 and appendix F)."""


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


def _labels(items: Sequence[StepGroup]) -> list[int | None]:
    return [label for item in items for label in item.labels]


class ProcessObjective:
    """Cross-entropy at step ends; every labelled step of the optimizer step weighs the same."""

    name = "process"

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")

    def describe(self, item: StepGroup) -> Mapping[str, object]:
        return {**describe_group(item.group), "labels": list(item.labels)}

    def count(self, items: Sequence[StepGroup]) -> float:
        return sum(label is not None for label in _labels(items))

    def micro_batches(self, items: Sequence[StepGroup], max_tokens: int) -> list[list[StepGroup]]:
        return cut(items, lambda item: item.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[StepGroup]) -> LossSum:
        packed = pack([item.group for item in items], device_of(model))
        logits_SC, labels = _logits(model, packed), _labels(items)
        # One row of S steps; those without a label are masked.
        ends_1S = torch.tensor([[label is not None for label in labels]], device=logits_SC.device)
        labels_1S = torch.tensor([[label or 0 for label in labels]], device=logits_SC.device)
        right_1S = labels_1S >= (0 if self._settings.neutral_is_right else 1)
        if self._settings.method == "binary":
            out = step_binary(logits_SC.T, right_1S.float(), ends_1S)
        else:
            neutral = self._settings.neutral_is_right
            out = step_classes(logits_SC.unsqueeze(0), labels_1S + 1, ends_1S, neutral_is_correct=neutral)
        hits = ((out.correct_logps_BT > math.log(0.5)) == right_1S) & ends_1S
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
        if all(label is None for label in item.labels):
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


def best_of_n(step_logps: Sequence[Sequence[float]], *, aggregation: Literal["min", "product"]) -> int:
    """Index of the completion whose steps are the most surely right; the first of equals.

    Args:
        step_logps: for each completion, the log-probability of each step that it is right.
        aggregation: `min`: the most doubtful step decides; `product`: all of them do.

    Raises:
        ValueError: no completion, one without steps, or a log-probability above 0.

    Source:
        Lightman et al. 2023 (2305.20050), section 2.6 and appendix F.
    """
    if not step_logps:
        raise ValueError("best_of_n needs at least one completion")
    longest = max(map(len, step_logps))
    logps_BT = torch.tensor(
        [[*row, *[0.0] * (longest - len(row))] for row in step_logps], dtype=torch.float64
    )
    ends_BT = torch.tensor([[t < len(row) for t in range(longest)] for row in step_logps])
    return int(STEP_AGGREGATIONS[aggregation](logps_BT, ends_BT).argmax())


class ProcessEvaluation(NamedTuple):
    """Held-out labelled steps. Intervals resample clusters, such as problems, whose steps are alike.

    accuracy: share judged as labelled at one half.
    majority: share of the more frequent label, what a constant reaches.
    balanced_accuracy: mean of the accuracies on right and on wrong steps; a constant has 0.5.
    auc: probability that a right step scores above a wrong one; chance is 0.5.
    """

    accuracy: Estimate
    majority: float
    balanced_accuracy: Estimate
    auc: Estimate


def evaluate_process(
    step_logps: Sequence[Sequence[float]],
    items: Sequence[StepGroup],
    *,
    clusters: Sequence[str],
    neutral_is_right: bool = True,
    seed: int = 0,
) -> ProcessEvaluation:
    """Judge the scores of `score_steps` by the labels.

    Args:
        clusters: of each solution, what it shares with others (its problem).

    Raises:
        DataError: no right or no wrong step among the labelled ones.
    """
    rows = [
        (logp, label >= (0 if neutral_is_right else 1), cluster)
        for logps, item, cluster in zip(step_logps, items, clusters, strict=True)
        for logp, label in zip(logps, item.labels, strict=True)
        if label is not None
    ]
    scores_S = np.array([row[0] for row in rows])
    right_S = np.array([row[1] for row in rows], dtype=bool)
    if not right_S.any() or right_S.all():
        raise DataError(
            "steps of both labels are needed to judge a process reward model",
            value=f"{int(right_S.sum())} right of {len(right_S)}",
        )
    names = sorted({row[2] for row in rows})
    members = {name: np.array([n for n, row in enumerate(rows) if row[2] == name]) for name in names}
    rng = generator(seed, "clusters")
    draws: list[tuple[float, float, float]] = []
    while len(draws) < _RESAMPLES:
        chosen = np.concatenate([members[names[i]] for i in rng.integers(len(names), size=len(names))])
        if right_S[chosen].any() and not right_S[chosen].all():
            draws.append(_figures(scores_S[chosen], right_S[chosen]))
    lows, highs = np.quantile(np.array(draws), (0.025, 0.975), axis=0)
    values = _figures(scores_S, right_S)
    accuracy, balanced, auc = (
        Estimate(float(v), float(low), float(high), len(rows))
        for v, low, high in zip(values, lows, highs, strict=True)
    )
    return ProcessEvaluation(accuracy, max(right_S.mean(), 1 - right_S.mean()), balanced, auc)


def _figures(scores_S: NDArray[np.float64], right_S: NDArray[np.bool_]) -> tuple[float, float, float]:
    hits_S = (scores_S > math.log(0.5)) == right_S
    balanced = (hits_S[right_S].mean() + hits_S[~right_S].mean()) / 2
    # Mann and Whitney: ranks of the right ones, equal scores share theirs.
    _, inverse_S, counts = np.unique(scores_S, return_inverse=True, return_counts=True)
    ranks_S = (np.cumsum(counts) - (counts - 1) / 2)[inverse_S]
    num_right, num_wrong = int(right_S.sum()), int((~right_S).sum())
    above = ranks_S[right_S].sum() - num_right * (num_right + 1) / 2
    return float(hits_S.mean()), float(balanced), float(above / (num_right * num_wrong))
