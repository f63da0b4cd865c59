"""Performance gap recovered: hand values, its interval, what has none."""

import math

import numpy as np
import pytest

from trueward.core.errors import EvidenceError
from trueward.evals import performance_gap_recovered

# Four items: the student closes one of the two that the ceiling has and the supervisor has not.
WEAK, STRONG, CEILING = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]


def test_hand_value() -> None:
    # (0.50 - 0.25) / (0.75 - 0.25)
    gap = performance_gap_recovered(WEAK, STRONG, CEILING)
    assert gap.recovered.value == 0.5
    assert (gap.weak.value, gap.strong.value, gap.ceiling.value, gap.recovered.n) == (0.25, 0.5, 0.75, 4)
    # A resample has no gap where it draws only items 1 and 4: (1 / 2)^4 = 0.0625, more than 2.5 %.
    assert gap.undefined == pytest.approx(0.0625, abs=0.02)
    assert (gap.recovered.low, gap.recovered.high) == (-math.inf, math.inf)


def test_the_interval_of_many_items() -> None:
    gap = performance_gap_recovered(WEAK * 100, STRONG * 100, CEILING * 100)
    assert gap.recovered.value == 0.5
    assert gap.undefined == 0
    # Among the items with a gap, about 200, half are recovered: a proportion with a deviation of 0.035.
    assert gap.recovered.low == pytest.approx(0.5 - 1.96 * 0.5 / np.sqrt(200), abs=0.015)
    assert gap.recovered.high == pytest.approx(0.5 + 1.96 * 0.5 / np.sqrt(200), abs=0.015)


@pytest.mark.parametrize(("strong", "value"), [(WEAK, 0.0), (CEILING, 1.0), ([0.0] * 4, -0.5)])
def test_the_ends_of_the_scale(strong: list[float], value: float) -> None:
    gap = performance_gap_recovered(WEAK * 50, strong * 50, CEILING * 50)
    assert gap.recovered.value == value
    if value in (0.0, 1.0):
        assert (gap.recovered.low, gap.recovered.high) == (value, value)


def test_resamples_without_a_gap_widen_the_interval() -> None:
    # One item in 100 has the gap and is recovered: e^-1 of the resamples miss it, the others give 1.
    weak, ceiling = [0.0] * 100, [1.0] + [0.0] * 99
    gap = performance_gap_recovered(weak, ceiling, ceiling)
    assert gap.undefined == pytest.approx(math.exp(-1), abs=0.04)
    assert (gap.recovered.low, gap.recovered.value, gap.recovered.high) == (-math.inf, 1.0, math.inf)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((WEAK, STRONG, WEAK), "there is no gap to recover"),
        ((CEILING, STRONG, WEAK), "there is no gap to recover"),
        ((WEAK, STRONG, CEILING[:3]), "measured on other items"),
        ((WEAK, [math.nan, *STRONG[1:]], CEILING), "outcomes of the strong"),
        (([], [], []), "outcomes of the weak"),
    ],
    ids=["equal", "below", "other items", "nan", "none"],
)
def test_refused(columns: tuple[list[float], ...], said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        performance_gap_recovered(*columns)
