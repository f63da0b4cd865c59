"""Intervals, paired comparisons and calibration. Every figure carries its number of items.

Bootstrap: percentile intervals over items (Efron & Tibshirani 1993, ch. 13), seeded; over groups of items
that share something, such as a prompt, where groups are given (Davison & Hinkley 1997, sec. 3.8).
Proportions: Wilson score interval (Wilson 1927). ECE: Guo et al. 2017, eq. 3, with equal-width bins.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueward.core.errors import EvidenceError

__all__ = [
    "CalibrationBin",
    "Estimate",
    "bootstrap_mean",
    "expected_calibration_error",
    "paired_difference",
    "reliability_bins",
    "sign_flip_p",
    "wilson",
    "win_rate",
]

Z_95 = 1.959963984540054
NUM_RESAMPLES = 2000
_CHUNK_ITEMS = 2_000_000


class Estimate(NamedTuple):
    """A figure with its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int

    def shown(self, digits: int = 2) -> str:
        """`0.53 [0.49, 0.57]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise EvidenceError(f"{name} must be a non-empty list of numbers", value=array.shape)
    if not np.isfinite(array).all():
        raise EvidenceError(
            f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite",
            remedy="an item that could not be scored must be counted, not averaged",
        )
    return array


def bootstrap_mean(values: ArrayLike, *, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """Mean of `values` with a percentile bootstrap interval over items, or over groups of them.

    Args:
        groups: of each item, what it shares with others, such as its prompt. Whole groups are drawn, because
            items that are alike say less than as many that are not. Groups of one item change nothing.

    Raises:
        EvidenceError: empty, not finite, or another number of groups.
    """
    array = _checked(values, "values")
    sums, sizes = _grouped(array, groups)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ITEMS // sums.size)
    means: list[NDArray[np.float64]] = []
    done = 0
    while done < NUM_RESAMPLES:
        count = min(rows, NUM_RESAMPLES - done)
        drawn = rng.integers(0, sums.size, (count, sums.size))
        means.append(sums[drawn].mean(axis=1) / sizes[drawn].mean(axis=1))
        done += count
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high), array.size)


def _grouped(
    array: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of items of each group, in the order in which groups are first seen."""
    if groups is None:
        return array, np.ones_like(array)
    if len(groups) != array.size:
        raise EvidenceError(
            "there is not one group for each item", value=len(groups), expected=f"{array.size}"
        )
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums = np.bincount(index, weights=array).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """Mean of `first - second` over the same items, resampling items, or groups of them.

    Args:
        groups: as of `bootstrap_mean`.

    Raises:
        EvidenceError: the lists differ in length, are empty, or hold a value that is not finite.
    """
    a, b = _checked(first, "first"), _checked(second, "second")
    if a.size != b.size:
        raise EvidenceError(
            "paired lists differ in length", value=(a.size, b.size), expected="the same items"
        )
    return bootstrap_mean(a - b, groups=groups, seed=seed)


def win_rate(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Estimate:
    """Share of items where `first` scores above `second`; a tie counts half."""
    a, b = _checked(first, "first"), _checked(second, "second")
    if a.size != b.size:
        raise EvidenceError(
            "paired lists differ in length", value=(a.size, b.size), expected="the same items"
        )
    return bootstrap_mean(np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0)), seed=seed)


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with its Wilson score interval, right also near 0 and 1.

    Raises:
        EvidenceError: n is 0, or successes lie outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise EvidenceError("a proportion needs 0 <= successes <= n and n > 0", value=(successes, n))
    p = successes / n
    z2 = Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the bound is the proportion itself, which rounding would miss by a last bit.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def sign_flip_p(differences: ArrayLike, *, seed: int = 0, num_flips: int = 10_000) -> float:
    """Two-sided p-value of a mean difference of 0, by sign flips (Fisher 1935); at least 1 / (flips + 1)."""
    array = _checked(differences, "differences")
    rng = np.random.default_rng(seed)
    seen = abs(array.mean())
    hits = 0
    rows = max(1, _CHUNK_ITEMS // array.size)
    done = 0
    while done < num_flips:
        count = min(rows, num_flips - done)
        signs = rng.integers(0, 2, (count, array.size)) * 2 - 1
        # Sums in another order differ in their last bits, and must still count as equal.
        hits += int((np.abs((signs * array).mean(axis=1)) >= seen - 1e-12 * np.abs(array).mean()).sum())
        done += count
    return (hits + 1) / (num_flips + 1)


class CalibrationBin(NamedTuple):
    """One bar of a reliability diagram."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


def reliability_bins(
    probabilities: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10
) -> list[CalibrationBin]:
    """Mean predicted probability and observed frequency in equal-width bins; empty bins are left out.

    Args:
        probabilities: predicted probability of outcome 1, each in [0, 1].
        outcomes: observed outcome in [0, 1] (a soft label is allowed).
    """
    p, y = _checked(probabilities, "probabilities"), _checked(outcomes, "outcomes")
    if p.size != y.size or p.min() < 0 or p.max() > 1 or y.min() < 0 or y.max() > 1:
        raise EvidenceError("calibration needs probabilities and outcomes in [0, 1] for the same items")
    index = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [
        CalibrationBin(
            b / num_bins,
            (b + 1) / num_bins,
            float(p[index == b].mean()),
            float(y[index == b].mean()),
            int((index == b).sum()),
        )
        for b in range(num_bins)
        if (index == b).any()
    ]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Weighted mean of |accuracy - confidence| over bins (Guo et al. 2017, eq. 3).

    Raises:
        EvidenceError: no bins.
    """
    total = sum(b.n for b in bins)
    if total == 0:
        raise EvidenceError("a calibration error needs at least one item", value=total)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / total
