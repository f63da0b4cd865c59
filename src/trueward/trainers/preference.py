"""Preference tuning without a reward model: pairs, and the reference's log-probs computed once.

    log-probs of chosen and rejected under the policy -> objective, where the method has a reference against
    its stored ones -> mean over pairs
What a method needs stands in `PREFERENCE_METHODS` (see preference_methods), not in branches here.
Log-probs are sums over trained tokens, in nats. Axes: B pairs, S sequences (chosen and rejected in turn).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trueward.core.errors import ConfigError, DataError
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.objectives import PreferenceLoss, accuracy
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.diagnosis import warnings_of
from trueward.trainers.groups import cut, describe_group
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.preference_methods import PREFERENCE_METHODS, PreferenceMethod, PreferenceSettings
from trueward.trainers.reference import reference_logps, sequence_scores
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "PREFERENCE_METHODS",
    "PreferenceEvaluation",
    "PreferenceMethod",
    "PreferenceObjective",
    "PreferencePair",
    "PreferenceSettings",
    "evaluate_preference",
    "preference_pairs",
    "reference_pairs",
    "train_preference",
]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A comparison as tokens (chosen, then rejected), with the reference's summed log-probs in nats where the
    method has a reference."""

    group: TokenGroup
    ref_chosen: float | None = None
    ref_rejected: float | None = None


class PairScores(NamedTuple):
    """Summed log-probs of a micro-batch, with gradient, and trained tokens of each."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    num_tokens: int

    def changes(self, refs_B2: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Side -> (sum of policy - ref, trained tokens)."""
        return {
            "chosen": ((self.chosen_B - refs_B2[:, 0]).sum(), self.chosen_tokens_B.sum()),
            "rejected": ((self.rejected_B - refs_B2[:, 1]).sum(), self.rejected_tokens_B.sum()),
        }


def _checked(group: TokenGroup) -> TokenGroup:
    if len(group.completions) != 2 or not all(any(c.trained) for c in group.completions):
        raise DataError(
            f"pair {group.id or '(no id)'} is not two completions with trained tokens",
            value=[sum(c.trained) for c in group.completions],
            expected="chosen, then rejected",
        )
    return group


def pair_scores(model: nn.Module, groups: Sequence[TokenGroup]) -> PairScores:
    """Summed log-probs of the completions of pairs.

    Raises:
        DataError: a group does not hold exactly two completions with trained tokens.
    """
    scores = sequence_scores(model, [_checked(group) for group in groups])
    logps_B2, counts_B2 = scores.logps_S.view(-1, 2), scores.counts_S.view(-1, 2)
    return PairScores(logps_B2[:, 0], logps_B2[:, 1], counts_B2[:, 0], counts_B2[:, 1], scores.num_tokens)


def _refs(scores: PairScores, pairs: Sequence[PreferencePair]) -> Tensor:
    """refs_B2 of pairs that have them.

    Raises:
        DataError: one has none.
    """
    for pair in pairs:
        if pair.ref_chosen is None or pair.ref_rejected is None:
            raise DataError(
                f"pair {pair.group.id or '(no id)'} has no log-probs of the reference",
                remedy="make the pairs with preference_pairs and the same settings",
            )
    return scores.chosen_B.new_tensor([[pair.ref_chosen, pair.ref_rejected] for pair in pairs])


def _loss(scores: PairScores, refs_B2: Tensor | None, settings: PreferenceSettings) -> PreferenceLoss:
    """The method's loss, given what its record says that it takes."""
    method = settings.record()
    logps = [scores.chosen_B, scores.rejected_B]
    if refs_B2 is not None:
        logps += [refs_B2[:, 0], refs_B2[:, 1]]
    if method.mean:
        lengths = (scores.chosen_tokens_B, scores.rejected_tokens_B)
        logps = [logps_B / lengths[i % 2] for i, logps_B in enumerate(logps)]
    nll = [-scores.chosen_B / scores.chosen_tokens_B] if method.nll else []
    return method.loss(*logps, *nll, **settings.options())


class PreferenceObjective:
    """A method of the table over pairs; every pair of the step weighs the same."""

    def __init__(self, settings: PreferenceSettings) -> None:
        self.name = settings.method
        self._settings = settings
        self.settings: Mapping[str, object] = {"method": settings.method, **settings.options()}

    def describe(self, item: PreferencePair) -> Mapping[str, object]:
        if not self._settings.record().reference:
            return describe_group(item.group)
        return {
            **describe_group(item.group),
            "ref_chosen": item.ref_chosen,
            "ref_rejected": item.ref_rejected,
        }

    def count(self, items: Sequence[PreferencePair]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[PreferencePair], max_tokens: int) -> list[list[PreferencePair]]:
        return cut(items, lambda pair: pair.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[PreferencePair]) -> LossSum:
        scores = pair_scores(model, [pair.group for pair in items])
        refs_B2 = _refs(scores, items) if self._settings.record().reference else None
        out = _loss(scores, refs_B2, self._settings)
        figures_B = {
            "rewards/chosen": out.chosen_rewards_B,
            "rewards/rejected": out.rejected_rewards_B,
            "rewards/margins": out.chosen_rewards_B - out.rejected_rewards_B,
            "rewards/accuracies": accuracy(out.chosen_rewards_B, out.rejected_rewards_B),
            "logps/chosen": scores.chosen_B,
            "logps/rejected": scores.rejected_B,
        }
        sums = {name: (values_B.sum(), float(len(items))) for name, values_B in figures_B.items()}
        if refs_B2 is not None:
            for side, (change, tokens) in scores.changes(refs_B2).items():
                sums[f"logps/{side}_per_token_change"] = (change, float(tokens))
        return LossSum(out.loss_B.sum(), scores.num_tokens, sums)


def reference_pairs(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> list[PreferencePair]:
    """Pairs with the reference's log-probs; the arguments are those of `reference_logps`.

    Raises:
        DataError: a group is no pair.
    """
    logps = reference_logps(
        model,
        [_checked(group) for group in groups],
        ref_model=ref_model,
        cache=cache,
        max_tokens_per_forward=max_tokens_per_forward,
        precision=precision,
    )
    sides = zip(groups, logps[::2], logps[1::2], strict=True)
    return [PreferencePair(group, chosen, rejected) for group, chosen, rejected in sides]


def preference_pairs(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    preference: PreferenceSettings,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> list[PreferencePair]:
    """Pairs as the method needs them: those of `reference_pairs`, or bare ones where it has no reference.

    Raises:
        ConfigError: a reference is given to a method that has none.
        DataError: a group is no pair.
    """
    if preference.record().reference:
        return reference_pairs(
            model,
            groups,
            ref_model=ref_model,
            cache=cache,
            max_tokens_per_forward=max_tokens_per_forward,
            precision=precision,
        )
    if ref_model is not None:
        raise ConfigError(f"{preference.method} uses no reference model", remedy="leave ref_model out")
    return [PreferencePair(_checked(group)) for group in groups]


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
        ref_model: see `reference_logps`; None for methods without a reference.

    Returns:
        TrainResult; `warnings` holds the diagnosis, such as chosen displaced from the reference.
    """
    pairs = preference_pairs(
        model,
        groups,
        preference=preference,
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
    # Again, with the limit of displacement that was asked for.
    return replace(result, warnings=warnings_of(folder, preference))


class PreferenceEvaluation(NamedTuple):
    """Held-out figures of a policy, with intervals over pairs; changes are against the reference, or None."""

    loss: Estimate
    accuracy: Estimate
    margin: Estimate
    chosen_per_token_change: float | None
    rejected_per_token_change: float | None

    def metrics(self) -> dict[str, float]:
        figures = {
            "eval/loss": self.loss.value,
            "eval/accuracy": self.accuracy.value,
            "eval/rewards/margins": self.margin.value,
            "eval/logps/chosen_per_token_change": self.chosen_per_token_change,
            "eval/logps/rejected_per_token_change": self.rejected_per_token_change,
        }
        return {name: value for name, value in figures.items() if value is not None}


@torch.no_grad()
def evaluate_preference(
    model: nn.Module,
    pairs: Sequence[PreferencePair],
    *,
    preference: PreferenceSettings,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> PreferenceEvaluation:
    """Loss, accuracy and margins on held-out pairs (made by `preference_pairs`); intervals resample prompts.

    Raises:
        DataError: no pairs.
    """
    if not pairs:
        raise DataError("there is no held-out pair to evaluate on", remedy="check the split")
    columns: dict[str, list[Tensor]] = {"loss": [], "accuracy": [], "margin": []}
    changes: dict[str, list[float]] = {"chosen": [0.0, 0.0], "rejected": [0.0, 0.0]}
    for batch in cut(pairs, lambda pair: pair.group, max_tokens_per_forward):
        with forward_precision(precision, device_of(model)):
            scores = pair_scores(model, [pair.group for pair in batch])
        refs_B2 = _refs(scores, batch) if preference.record().reference else None
        out = _loss(scores, refs_B2, preference)
        columns["loss"].append(out.loss_B.cpu())
        columns["accuracy"].append(accuracy(out.chosen_rewards_B, out.rejected_rewards_B).cpu())
        columns["margin"].append((out.chosen_rewards_B - out.rejected_rewards_B).cpu())
        for side, parts in (scores.changes(refs_B2) if refs_B2 is not None else {}).items():
            changes[side] = [total + float(part) for total, part in zip(changes[side], parts, strict=True)]
    asked = [pair.group.prompt_ids for pair in pairs]
    estimates = {
        name: bootstrap_mean(torch.cat(parts).numpy(), groups=asked) for name, parts in columns.items()
    }
    means = {side: change / tokens if tokens else None for side, (change, tokens) in changes.items()}
    return PreferenceEvaluation(
        estimates["loss"], estimates["accuracy"], estimates["margin"], means["chosen"], means["rejected"]
    )
