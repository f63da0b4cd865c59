"""How good a model of steps is on held-out labels: accuracy, balanced accuracy, AUC; and what it has to beat.

Intervals resample clusters, such as problems, whose steps are alike. Works on scores, not on models.
Axes: S labelled steps.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueward.core.errors import DataError
from trueward.core.seed import generator
from trueward.core.stats import Estimate
from trueward.data.steps import StepGroup

__all__ = ["LengthRule", "ProcessEvaluation", "auc_gain", "evaluate_process", "fit_length_rule"]

_RESAMPLES = 1000


class ProcessEvaluation(NamedTuple):
    """Held-out labelled steps.

    accuracy: share judged as labelled at one half.
    majority: share of the more frequent label, what a constant reaches.
    balanced_accuracy: mean of the accuracies on right and on wrong steps; a constant has 0.5.
    auc: probability that a right step scores above a wrong one; chance is 0.5.
    """

    accuracy: Estimate
    majority: float
    balanced_accuracy: Estimate
    auc: Estimate


class _Labelled(NamedTuple):
    """Labelled steps: where they stand among all, whether they are right, and the members of each cluster."""

    index_S: NDArray[np.int64]
    right_S: NDArray[np.bool_]
    members: list[NDArray[np.int64]]


def _labelled(items: Sequence[StepGroup], clusters: Sequence[str], neutral_is_right: bool) -> _Labelled:
    flat = [(label, cluster) for item, cluster in zip(items, clusters, strict=True) for label in item.labels]
    index_S = np.array([n for n, (label, _) in enumerate(flat) if label is not None], dtype=np.int64)
    kept = [flat[n] for n in index_S]
    least = 0 if neutral_is_right else 1
    right_S = np.array([label is not None and label >= least for label, _ in kept], dtype=bool)
    if not right_S.any() or right_S.all():
        raise DataError(
            "steps of both labels are needed to judge a process reward model",
            value=f"{int(right_S.sum())} right of {len(right_S)}",
        )
    places: dict[str, list[int]] = {}
    for n, (_, cluster) in enumerate(kept):
        places.setdefault(cluster, []).append(n)
    return _Labelled(index_S, right_S, [np.array(places[name]) for name in sorted(places)])


def _scores(
    step_logps: Sequence[Sequence[float]], items: Sequence[StepGroup], labelled: _Labelled
) -> NDArray[np.float64]:
    flat = [
        logp
        for logps, item in zip(step_logps, items, strict=True)
        for logp, _ in zip(logps, item.labels, strict=True)
    ]
    return np.array(flat)[labelled.index_S]


def _resampled(labelled: _Labelled, seed: int) -> Iterator[NDArray[np.int64]]:
    """Steps of clusters drawn with replacement; draws of one label only say nothing and are left out."""
    rng, members, count = generator(seed, "clusters"), labelled.members, 0
    while count < _RESAMPLES:
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if labelled.right_S[chosen].any() and not labelled.right_S[chosen].all():
            count += 1
            yield chosen


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
    labelled = _labelled(items, clusters, neutral_is_right)
    scores_S, right_S = _scores(step_logps, items, labelled), labelled.right_S
    draws = [_figures(scores_S[chosen], right_S[chosen]) for chosen in _resampled(labelled, seed)]
    lows, highs = np.quantile(np.array(draws), (0.025, 0.975), axis=0)
    values = _figures(scores_S, right_S)
    accuracy, balanced, auc = (
        Estimate(float(v), float(low), float(high), len(right_S))
        for v, low, high in zip(values, lows, highs, strict=True)
    )
    return ProcessEvaluation(accuracy, max(right_S.mean(), 1 - right_S.mean()), balanced, auc)


def auc_gain(
    step_logps: Sequence[Sequence[float]],
    rival_logps: Sequence[Sequence[float]],
    items: Sequence[StepGroup],
    *,
    clusters: Sequence[str],
    neutral_is_right: bool = True,
    seed: int = 0,
) -> Estimate:
    """AUC less that of a rival on the same steps, clusters resampled for both together.

    Raises:
        DataError: as `evaluate_process`.
    """
    labelled = _labelled(items, clusters, neutral_is_right)
    right_S = labelled.right_S
    pair = [_scores(logps, items, labelled) for logps in (step_logps, rival_logps)]

    def gain(chosen: NDArray[np.int64]) -> float:
        first, second = (_auc(scores_S[chosen], right_S[chosen]) for scores_S in pair)
        return first - second

    low, high = np.quantile([gain(chosen) for chosen in _resampled(labelled, seed)], (0.025, 0.975))
    return Estimate(gain(np.arange(len(right_S))), float(low), float(high), len(right_S))


def _figures(scores_S: NDArray[np.float64], right_S: NDArray[np.bool_]) -> tuple[float, float, float]:
    hits_S = (scores_S > math.log(0.5)) == right_S
    balanced = (hits_S[right_S].mean() + hits_S[~right_S].mean()) / 2
    return float(hits_S.mean()), float(balanced), _auc(scores_S, right_S)


def _auc(scores_S: NDArray[np.float64], right_S: NDArray[np.bool_]) -> float:
    # Mann and Whitney: ranks of the right ones, equal scores share theirs.
    _, inverse_S, counts = np.unique(scores_S, return_inverse=True, return_counts=True)
    ranks_S = (np.cumsum(counts) - (counts - 1) / 2)[inverse_S]
    num_right, num_wrong = int(right_S.sum()), int((~right_S).sum())
    above = ranks_S[right_S].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


class LengthRule(NamedTuple):
    """The rule that a step is right while the solution is short: up to `longest` tokens at its end."""

    longest: float

    def scores(self, items: Sequence[StepGroup]) -> list[tuple[float, ...]]:
        """For each step log sigmoid(longest + 1/2 - tokens), so that one half is the bound."""
        return [
            tuple(-float(np.logaddexp(0.0, tokens - self.longest - 0.5)) for tokens in _tokens(item))
            for item in items
        ]


def _tokens(item: StepGroup) -> list[int]:
    """Tokens of the solution up to each step's end."""
    return [n + 1 for n, end in enumerate(item.group.completions[0].trained) if end]


def fit_length_rule(items: Sequence[StepGroup], *, neutral_is_right: bool = True) -> LengthRule:
    """The length rule that judges most labelled steps of `items` as they are labelled.

    Raises:
        DataError: no labelled step.
    """
    least = 0 if neutral_is_right else 1
    pairs = [
        (tokens, label >= least)
        for item in items
        for tokens, label in zip(_tokens(item), item.labels, strict=True)
        if label is not None
    ]
    if not pairs:
        raise DataError("no labelled step to fit a rule on", value=len(items))
    lengths_S, right_S = (np.array(column) for column in zip(*pairs, strict=True))
    bounds, inverse_S = np.unique(lengths_S, return_inverse=True)
    # Accepting one more length gains its right steps and loses its wrong ones.
    gains = np.bincount(inverse_S, weights=np.where(right_S, 1.0, -1.0))
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    best = int(totals.argmax())
    return LengthRule(float(bounds[best - 1]) if best else 0.0)
