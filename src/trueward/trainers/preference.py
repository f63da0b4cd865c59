"""Preference tuning without a reward model (DPO): pairs, and the reference's log-probs computed once.

    log-probs of chosen and rejected under the policy -> objective against the stored ones of ref -> mean over
    pairs
Methods are functions in `PREFERENCE_METHODS`. Log-probs are sums over trained tokens, in nats.
Axes: B pairs, S sequences (chosen and rejected in turn).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from pydantic import Field, field_validator
from torch import Tensor, nn

from trueward.core.config import Config
from trueward.core.errors import DataError, nearest
from trueward.core.files import read_jsonl
from trueward.core.hashing import hash_json, short
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.models.packing import pack
from trueward.models.scoring import reference, score_completions
from trueward.objectives import PreferenceLoss, accuracy, dpo
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group, groups_hash, sequence_sums, trained_counts
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision, TrainSettings
from trueward.trainers.state import fingerprint, load_tensors, save_tensors

__all__ = [
    "PREFERENCE_METHODS",
    "PreferenceEvaluation",
    "PreferenceObjective",
    "PreferencePair",
    "PreferenceSettings",
    "displacement_warning",
    "evaluate_preference",
    "reference_pairs",
    "train_preference",
]

# Rows of metrics.jsonl that the closing warning averages over: one batch alone is noise.
_LAST_ROWS = 20


class PreferenceSettings(Config):
    """Settings of the preference objective."""

    method: str = "dpo"
    """Name in PREFERENCE_METHODS."""
    beta: float = Field(0.1, gt=0)
    """Strength of the tie to the reference (Rafailov et al. 2023, section 6)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a label is flipped (Mitchell 2023)."""
    displacement_limit: float = Field(0.1, gt=0)
    """Nats per token that chosen may fall below the reference while margins rise before the result warns."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PREFERENCE_METHODS:
            raise ValueError(f"unknown method {name!r}; {nearest(name, PREFERENCE_METHODS)}")
        return name


Method = Callable[[Tensor, Tensor, Tensor, Tensor, PreferenceSettings], PreferenceLoss]


def _dpo(
    chosen_B: Tensor,
    rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    settings: PreferenceSettings,
) -> PreferenceLoss:
    return dpo(
        chosen_B,
        rejected_B,
        ref_chosen_B,
        ref_rejected_B,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
    )


PREFERENCE_METHODS: dict[str, Method] = {"dpo": _dpo}


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A comparison as tokens (chosen, then rejected) with the reference's summed log-probs in nats."""

    group: TokenGroup
    ref_chosen: float
    ref_rejected: float


class PairScores(NamedTuple):
    """Summed log-probs of a micro-batch, with gradient, and trained tokens of each."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    num_tokens: int


def pair_scores(model: nn.Module, groups: Sequence[TokenGroup]) -> PairScores:
    """Summed log-probs of the completions of pairs.

    Raises:
        DataError: a group does not hold exactly two completions with trained tokens.
    """
    for group in groups:
        if len(group.completions) != 2 or not all(any(c.trained) for c in group.completions):
            raise DataError(
                f"pair {group.id or '(no id)'} is not two completions with trained tokens",
                value=[sum(c.trained) for c in group.completions],
                expected="chosen, then rejected",
            )
    packed = pack(groups, device_of(model))
    logps_B2 = sequence_sums(score_completions(model, packed).logps_N, packed).view(-1, 2)
    counts_B2 = trained_counts(packed).view(-1, 2)
    return PairScores(logps_B2[:, 0], logps_B2[:, 1], counts_B2[:, 0], counts_B2[:, 1], packed.num_tokens)


class PreferenceObjective:
    """A method of the table over pairs; every pair of the step weighs the same."""

    def __init__(self, settings: PreferenceSettings) -> None:
        self.name = settings.method
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json", exclude={"displacement_limit"})

    def describe(self, item: PreferencePair) -> Mapping[str, object]:
        refs = {"ref_chosen": item.ref_chosen, "ref_rejected": item.ref_rejected}
        return {**describe_group(item.group), **refs}

    def count(self, items: Sequence[PreferencePair]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[PreferencePair], max_tokens: int) -> list[list[PreferencePair]]:
        return cut(items, lambda pair: pair.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[PreferencePair]) -> LossSum:
        scores = pair_scores(model, [pair.group for pair in items])
        ref_chosen_B = scores.chosen_B.new_tensor([pair.ref_chosen for pair in items])
        ref_rejected_B = scores.chosen_B.new_tensor([pair.ref_rejected for pair in items])
        method = PREFERENCE_METHODS[self.name]
        out = method(scores.chosen_B, scores.rejected_B, ref_chosen_B, ref_rejected_B, self._settings)
        figures_B = {
            "rewards/chosen": out.chosen_rewards_B,
            "rewards/rejected": out.rejected_rewards_B,
            "rewards/margins": out.chosen_rewards_B - out.rejected_rewards_B,
            "rewards/accuracies": accuracy(out.chosen_rewards_B, out.rejected_rewards_B),
            "logps/chosen": scores.chosen_B,
            "logps/rejected": scores.rejected_B,
        }
        sums = {name: (values_B.sum(), float(len(items))) for name, values_B in figures_B.items()}
        chosen_change, rejected_change = scores.chosen_B - ref_chosen_B, scores.rejected_B - ref_rejected_B
        sums["logps/chosen_per_token_change"] = (chosen_change.sum(), float(scores.chosen_tokens_B.sum()))
        sums["logps/rejected_per_token_change"] = (
            rejected_change.sum(),
            float(scores.rejected_tokens_B.sum()),
        )
        return LossSum(out.loss_B.sum(), scores.num_tokens, sums)


@torch.no_grad()
def reference_pairs(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> list[PreferencePair]:
    """Pairs with the reference's log-probs, computed once and kept in `cache` by (model hash, data hash).

    Args:
        model: the policy before its first step.
        ref_model: the reference; None is the policy with its adapters off, or as it is now without adapters.
        cache: folder for `ref_logps-<key>.safetensors`.

    Raises:
        DataError: a group is no pair.
    """
    adapted = ref_model is None and isinstance(model, PeftModel)
    ref = model if ref_model is None else ref_model
    model_hash = fingerprint(ref, frozen_only=adapted)
    file = cache / f"ref_logps-{short(hash_json([model_hash, groups_hash(groups), precision]))}.safetensors"
    if not file.exists():
        parts = []
        ref.eval()
        with reference(model) if adapted else nullcontext():
            for batch in cut(groups, lambda group: group, max_tokens_per_forward):
                with forward_precision(precision, device_of(ref)):
                    scores = pair_scores(ref, batch)
                parts.append(torch.stack([scores.chosen_B, scores.rejected_B], dim=1).cpu())
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_tensors(partial, {"logps_B2": torch.cat(parts)})
        partial.replace(file)
    logps_B2 = load_tensors(file)["logps_B2"].tolist()
    return [
        PreferencePair(g, chosen, rejected) for g, (chosen, rejected) in zip(groups, logps_B2, strict=True)
    ]


def train_preference(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    settings: TrainSettings,
    preference: PreferenceSettings,
    folder: Path,
    ref_model: nn.Module | None = None,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a policy on pairs (chosen, then rejected); see `loop.train`.

    Args:
        model: the policy as it was before its first step, also when resuming.
        ref_model: see `reference_pairs`.

    Returns:
        TrainResult, with a warning where chosen was displaced.
    """
    pairs = reference_pairs(
        model,
        groups,
        ref_model=ref_model,
        cache=folder,
        max_tokens_per_forward=settings.max_tokens_per_forward,
        precision=settings.precision,
    )
    result = train(
        model,
        objective=PreferenceObjective(preference),
        items=pairs,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )
    rows = list(read_jsonl(folder / "metrics.jsonl"))[-_LAST_ROWS:]
    warning = displacement_warning(rows, limit=preference.displacement_limit)
    return replace(result, warnings=(*result.warnings, warning)) if warning else result


def displacement_warning(rows: Sequence[Mapping[str, float | None]], *, limit: float) -> str | None:
    """A sentence if chosen lost more than `limit` nats per token while margins rose, else None.

    Args:
        rows: lines of metrics.jsonl to average over.

    Source:
        Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in DPO".
    """

    def mean(name: str) -> float:
        seen = [value for row in rows if (value := row.get(name)) is not None]
        return sum(seen) / len(seen) if seen else 0.0

    change, margin = mean("logps/chosen_per_token_change"), mean("rewards/margins")
    if change >= -limit or margin <= 0:
        return None
    return (
        f"the margin rose to {margin:.2f}, but the chosen completions became less likely by "
        f"{-change:.2f} nats per token (limit {limit:g}): the policy moves its probability elsewhere; "
        "try a larger beta, a lower lr or fewer steps, and read samples"
    )


class PreferenceEvaluation(NamedTuple):
    """Held-out figures of a policy against its reference, with intervals over pairs."""

    loss: Estimate
    accuracy: Estimate
    margin: Estimate
    chosen_per_token_change: float
    rejected_per_token_change: float

    def metrics(self) -> dict[str, float]:
        return {
            "eval/loss": self.loss.value,
            "eval/accuracy": self.accuracy.value,
            "eval/rewards/margins": self.margin.value,
            "eval/logps/chosen_per_token_change": self.chosen_per_token_change,
            "eval/logps/rejected_per_token_change": self.rejected_per_token_change,
        }


@torch.no_grad()
def evaluate_preference(
    model: nn.Module,
    pairs: Sequence[PreferencePair],
    *,
    preference: PreferenceSettings,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> PreferenceEvaluation:
    """Loss, accuracy and margins on held-out pairs (made by `reference_pairs`).

    Raises:
        DataError: no pairs.
    """
    if not pairs:
        raise DataError("there is no held-out pair to evaluate on", remedy="check the split")
    method = PREFERENCE_METHODS[preference.method]
    columns: dict[str, list[Tensor]] = {"loss": [], "accuracy": [], "margin": []}
    changes = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)
    for batch in cut(pairs, lambda pair: pair.group, max_tokens_per_forward):
        with forward_precision(precision, device_of(model)):
            scores = pair_scores(model, [pair.group for pair in batch])
        refs_B2 = scores.chosen_B.new_tensor([[pair.ref_chosen, pair.ref_rejected] for pair in batch])
        out = method(scores.chosen_B, scores.rejected_B, refs_B2[:, 0], refs_B2[:, 1], preference)
        columns["loss"].append(out.loss_B.cpu())
        columns["accuracy"].append(accuracy(out.chosen_rewards_B, out.rejected_rewards_B).cpu())
        columns["margin"].append((out.chosen_rewards_B - out.rejected_rewards_B).cpu())
        policy_B2 = torch.stack([scores.chosen_B, scores.rejected_B], dim=1)
        changes += (policy_B2 - refs_B2).sum(0).double().cpu()
        tokens_B2 = torch.stack([scores.chosen_tokens_B, scores.rejected_tokens_B], dim=1)
        counts += tokens_B2.sum(0).double().cpu()
    estimates = {name: bootstrap_mean(torch.cat(parts).numpy()) for name, parts in columns.items()}
    chosen_change, rejected_change = (changes / counts).tolist()
    return PreferenceEvaluation(
        estimates["loss"], estimates["accuracy"], estimates["margin"], chosen_change, rejected_change
    )
