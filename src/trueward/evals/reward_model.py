"""How good a reward model is: accuracy with its interval, calibration, mean margin, agreement with the true
reward.

Works on scores, not on models. Every figure is the same whichever answer of a pair is called chosen, as long
as the
label says so too: a pair counts once, seen from the answer that the reward model prefers.
Axes: B pairs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueward.core.errors import EvidenceError
from trueward.core.stats import (
    CalibrationBin,
    Estimate,
    bootstrap_mean,
    expected_calibration_error,
    reliability_bins,
)

__all__ = ["RewardModelReport", "evaluate_reward_model", "labelled_groups", "labels_of", "pair_outcomes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelReport:
    """What a reward model got right on held-out pairs."""

    accuracy: Estimate
    """Share of labelled pairs whose better answer scores higher; equal scores count half."""
    ece: float
    """Expected calibration error of sigmoid(|margin|) against the label, in [0, 1]."""
    bins: tuple[CalibrationBin, ...]
    """Confidence in the preferred answer, 0.5 to 1, against how often the label prefers it too."""
    loss: float
    """Mean Bradley-Terry loss over all pairs, nats: without margin and centering, which only training has."""
    mean_margin: float
    """Mean of score(better) - score(worse) over labelled pairs, in units of the reward."""
    outcomes: tuple[float, ...]
    """1, 0.5 or 0 for each labelled pair, in order: for paired comparisons."""
    groups: tuple[Hashable, ...] | None
    """Group of each labelled pair, in order, where pairs share prompts; intervals resample groups."""
    tied_labels: int
    """Pairs whose label prefers neither; not in accuracy and margin, but in the calibration."""
    tied_scores: int
    """Pairs that the reward model scores equally."""
    gold_accuracy: Estimate | None
    """Share of pairs ordered as by the true reward, where that is known and has an order."""
    gold_ties: int
    """Pairs of equal true reward, left out of `gold_accuracy`."""

    def metrics(self) -> dict[str, float]:
        """The figures that are worth a line while training, by their declared names."""
        return {
            "eval/loss": self.loss,
            "eval/accuracy": self.accuracy.value,
            "eval/rewards/margins": self.mean_margin,
        }


def labels_of(num_pairs: int, soft_labels: ArrayLike | None) -> NDArray[np.float64]:
    """P(chosen is better) of each pair: `soft_labels`, or 1 where there are none.

    Raises:
        EvidenceError: no pairs, another count of labels, or a label outside [0, 1].
    """
    if num_pairs == 0:
        raise EvidenceError("there are no pairs to evaluate on", remedy="keep a held-out split")
    if soft_labels is None:
        return np.ones(num_pairs)
    labels_B = np.asarray(soft_labels, dtype=np.float64)
    if labels_B.shape != (num_pairs,):
        raise EvidenceError(
            "there is not one soft label for each pair", value=labels_B.shape, expected=f"{num_pairs}"
        )
    if not ((labels_B >= 0) & (labels_B <= 1)).all():
        raise EvidenceError(
            "soft labels must lie in [0, 1]", value=labels_B[~((labels_B >= 0) & (labels_B <= 1))][0]
        )
    return labels_B


def pair_outcomes(margins: ArrayLike, soft_labels: ArrayLike | None = None) -> NDArray[np.float64]:
    """1 where the margin agrees with the label, 0 where it does not, 0.5 where it is 0; labels of 0.5 are
    left out.

    Args:
        margins: score(chosen) - score(rejected), shape (B,).
        soft_labels: P(chosen is better), shape (B,), each in [0, 1]; None means 1.

    Raises:
        EvidenceError: margins that are not finite, labels out of range, or no pair with a preference.
    """
    margins_B = _finite(margins, "margins")
    labels_B = labels_of(margins_B.size, soft_labels)
    labelled_B = labels_B != 0.5
    if not labelled_B.any():
        raise EvidenceError(
            "every pair is labelled a tie, so nothing can be right or wrong", value=margins_B.size
        )
    agreement_B = 0.5 + 0.5 * np.sign(margins_B) * np.sign(labels_B - 0.5)
    outcomes: NDArray[np.float64] = agreement_B[labelled_B]
    return outcomes


def evaluate_reward_model(
    rewards_chosen: ArrayLike,
    rewards_rejected: ArrayLike,
    *,
    soft_labels: ArrayLike | None = None,
    gold_differences: ArrayLike | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> RewardModelReport:
    """Judge a reward model by its scores of held-out pairs.

    Calibration is symmetrised: each pair is seen from the answer with the higher score, predicted better with
    probability sigmoid(|margin|) >= 0.5, and the outcome is the label's probability for that answer, 0.5
    where the scores are equal. Swapping chosen and rejected (and the label) changes nothing; taking every
    pair as `chosen wins` instead would make any model look under-confident. So the bins below 0.5 stay
    empty, and are left out.

    Args:
        rewards_chosen: scores of the chosen answers, shape (B,).
        rewards_rejected: scores of the rejected answers, same order.
        soft_labels: P(chosen is better), shape (B,), each in [0, 1]; None means 1.
        gold_differences: true reward of chosen minus that of rejected, shape (B,), where it is known.
        groups: what pairs share, such as the prompt, in the same order; None means nothing.
        seed: of the bootstrap.

    Raises:
        EvidenceError: no pairs, counts that differ, scores that are not finite, or labels that prefer
            nothing.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3; sigmoid(margin) is Bradley & Terry
        1952.
    """
    chosen_B, rejected_B = (
        _finite(rewards_chosen, "rewards_chosen"),
        _finite(rewards_rejected, "rewards_rejected"),
    )
    if chosen_B.size != rejected_B.size:
        raise EvidenceError(
            "there are not as many chosen as rejected", value=(chosen_B.size, rejected_B.size)
        )
    margins_B = chosen_B - rejected_B
    labels_B = labels_of(margins_B.size, soft_labels)
    outcomes = pair_outcomes(margins_B, labels_B)
    confidence_B = 1 / (1 + np.exp(-np.abs(margins_B)))
    agreement_B = 0.5 + np.sign(margins_B) * (labels_B - 0.5)
    bins = tuple(reliability_bins(confidence_B, agreement_B))
    better_B = np.sign(labels_B - 0.5)
    gold_accuracy, gold_ties = _gold(margins_B, gold_differences, groups, seed)
    labelled = labelled_groups(groups, labels_B)
    return RewardModelReport(
        accuracy=bootstrap_mean(outcomes, groups=labelled, seed=seed),
        ece=expected_calibration_error(bins),
        bins=bins,
        loss=float(
            (labels_B * np.logaddexp(0, -margins_B) + (1 - labels_B) * np.logaddexp(0, margins_B)).mean()
        ),
        mean_margin=float((margins_B * better_B)[better_B != 0].mean()),
        outcomes=tuple(outcomes.tolist()),
        groups=labelled,
        tied_labels=int((better_B == 0).sum()),
        tied_scores=int((margins_B == 0).sum()),
        gold_accuracy=gold_accuracy,
        gold_ties=gold_ties,
    )


def labelled_groups(
    groups: Sequence[Hashable] | None, labels_B: NDArray[np.float64]
) -> tuple[Hashable, ...] | None:
    """The groups of the pairs that `pair_outcomes` keeps.

    Raises:
        EvidenceError: another number of groups.
    """
    if groups is None:
        return None
    if len(groups) != labels_B.size:
        raise EvidenceError(
            "there is not one group for each pair", value=len(groups), expected=f"{labels_B.size}"
        )
    return tuple(group for group, label in zip(groups, labels_B, strict=True) if label != 0.5)


def _gold(
    margins_B: NDArray[np.float64],
    gold_differences: ArrayLike | None,
    groups: Sequence[Hashable] | None,
    seed: int,
) -> tuple[Estimate | None, int]:
    if gold_differences is None:
        return None, 0
    gold_B = _finite(gold_differences, "gold_differences")
    if gold_B.size != margins_B.size:
        raise EvidenceError(
            "there is not one gold difference for each pair", value=(gold_B.size, margins_B.size)
        )
    ordered_B = gold_B != 0
    if not ordered_B.any():
        return None, gold_B.size
    outcomes = pair_outcomes(margins_B[ordered_B], gold_B[ordered_B] > 0)
    kept = labelled_groups(groups, np.where(ordered_B, 1.0, 0.5))
    return bootstrap_mean(outcomes, groups=kept, seed=seed), int((~ordered_B).sum())


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array_B = np.asarray(values, dtype=np.float64)
    if array_B.ndim != 1:
        raise EvidenceError(f"{name} must be a list of numbers", value=array_B.shape)
    if not np.isfinite(array_B).all():
        raise EvidenceError(
            f"{name} holds {int((~np.isfinite(array_B)).sum())} values that are not finite",
            remedy="find the pairs that could not be scored; they must be counted, not averaged",
        )
    return array_B
