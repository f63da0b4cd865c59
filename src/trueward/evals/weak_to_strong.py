"""How much of the gap between a weak supervisor and a strong ceiling a student closes that the supervisor
taught.

Works on outcomes, not on models. Not here: training. Axes: B items.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueward.core.errors import EvidenceError
from trueward.core.stats import NUM_RESAMPLES, Estimate, bootstrap_mean

__all__ = ["GapRecovered", "performance_gap_recovered"]


class GapRecovered(NamedTuple):
    """Performance gap recovered, beside the three performances it is made of.

    Attributes:
        recovered: 0 is the weak supervisor, 1 the ceiling; an infinite bound means that the items do not
            bound it.
        undefined: share of the resamples in which the ceiling is not above the weak supervisor.
    """

    recovered: Estimate
    weak: Estimate
    strong: Estimate
    ceiling: Estimate
    undefined: float


def _outcomes(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array_B = np.asarray(values, dtype=np.float64)
    if array_B.ndim != 1 or not array_B.size or not np.isfinite(array_B).all():
        raise EvidenceError(
            f"outcomes of the {name} must be a non-empty list of finite numbers", value=array_B.shape
        )
    return array_B


def performance_gap_recovered(
    weak: ArrayLike, strong: ArrayLike, ceiling: ArrayLike, *, seed: int = 0
) -> GapRecovered:
    """(strong - weak) / (ceiling - weak) of mean outcomes, with a percentile bootstrap interval over items.

    The three are resampled together. A resample without a gap has no value: it counts as below the lower and
    above the upper bound, so that it can only widen the interval; where they are 2.5 % or more, the bounds
    are infinite.

    Args:
        weak: outcomes of the weak supervisor, shape (B,), such as 1 right, 0 wrong, 0.5 undecided.
        strong: of the strong student that the weak supervisor taught, same items.
        ceiling: of the strong model taught with the truth, same items.
        seed: of the bootstrap.

    Raises:
        EvidenceError: other numbers of items, none, values that are not finite, or a ceiling that is not
            above the weak supervisor: there is no gap to recover.

    Source:
        Burns et al. 2023, "Weak-to-strong generalization" (arXiv:2312.09390), section 3.
    """
    columns = [_outcomes(v, n) for v, n in ((weak, "weak"), (strong, "strong"), (ceiling, "ceiling"))]
    sizes = [column.size for column in columns]
    if len(set(sizes)) > 1:
        raise EvidenceError("the three were measured on other items", value=sizes, expected="the same items")
    weak_mean, strong_mean, ceiling_mean = (float(column.mean()) for column in columns)
    if not ceiling_mean > weak_mean:
        raise EvidenceError(
            "there is no gap to recover: the ceiling is not above the weak supervisor",
            value=f"ceiling {ceiling_mean:.3f}, weak {weak_mean:.3f}",
            expected="ceiling > weak",
            remedy="take a weaker supervisor, or train the ceiling on more or longer",
        )
    low, high, undefined = _interval(np.stack(columns), seed)
    value = (strong_mean - weak_mean) / (ceiling_mean - weak_mean)
    recovered = Estimate(value, low, high, sizes[0])
    first, second, third = (bootstrap_mean(column, seed=seed) for column in columns)
    return GapRecovered(recovered, first, second, third, undefined)


def _interval(outcomes_3B: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """Bounds, and the share of resamples without a gap."""
    rng = np.random.default_rng(seed)
    size = outcomes_3B.shape[1]
    means = np.array([outcomes_3B[:, rng.integers(0, size, size)].mean(1) for _ in range(NUM_RESAMPLES)])
    gaps = means[:, 2] - means[:, 0]
    bad = gaps <= 0
    ratios = np.divide(means[:, 1] - means[:, 0], gaps, out=np.zeros_like(gaps), where=~bad)
    # No interpolation: between a finite and an infinite value there is none.
    low = np.quantile(np.where(bad, -np.inf, ratios), 0.025, method="lower")
    high = np.quantile(np.where(bad, np.inf, ratios), 0.975, method="higher")
    return float(low), float(high), float(bad.mean())
