"""Intervals against formulas, published values and another library; tests against their own definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from trueward.core.errors import EvidenceError
from trueward.core.stats import (
    Estimate,
    bootstrap_mean,
    expected_calibration_error,
    paired_difference,
    reliability_bins,
    sign_flip_p,
    wilson,
    win_rate,
)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    estimate = bootstrap_mean(values)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(values.size)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert estimate.n == 4000


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_mean(rng.exponential(1.0, 60), seed=i) for i in range(300)]
    covered = np.mean([e.low <= 1.0 <= e.high for e in intervals])
    # The percentile interval of 60 skewed values covers a little less than it says.
    assert 0.88 <= covered <= 0.98


def test_bootstrap_is_seeded_and_does_not_depend_on_the_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_mean(values, seed=3)
    assert whole == bootstrap_mean(values, seed=3)
    assert whole != bootstrap_mean(values, seed=4)
    monkeypatch.setattr("trueward.core.stats._CHUNK_ITEMS", 7 * 50)
    assert bootstrap_mean(values, seed=3) == pytest.approx(whole)


def test_pairing_takes_out_what_the_items_share() -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(0, 10, 400)
    first, second = items + 0.5 + rng.normal(0, 0.5, 400), items + rng.normal(0, 0.5, 400)
    paired = paired_difference(first, second)
    assert paired == bootstrap_mean(first - second)
    assert paired.low > 0.3
    assert paired.high < 0.7
    assert bootstrap_mean(first).low < bootstrap_mean(second).high


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 4]).value == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert win_rate([1.0, 1.0], [1.0, 1.0]) == Estimate(0.5, 0.5, 0.5, 2)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
def test_win_rates_of_both_sides_add_up_to_one(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    assert win_rate(first, second).value + win_rate(second, first).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score, uncorrected).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes, n)
    assert estimate.value == successes / n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5.1e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(pair: tuple[int, int]) -> None:
    successes, n = pair
    estimate = wilson(successes, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for bound in (estimate.low, estimate.high):
        left = (successes / n - bound) ** 2
        assert left == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / n, abs=1e-9)


def test_calibration_error_by_hand() -> None:
    bins = reliability_bins([0.15, 0.15, 0.85, 0.95, 1.0], [0, 1, 1, 1, 0], num_bins=10)
    assert [(b.low, b.high, b.n) for b in bins] == [(0.1, 0.2, 2), (0.8, 0.9, 1), (0.9, 1.0, 2)]
    # (2 * |0.5 - 0.15| + 1 * |1 - 0.85| + 2 * |0.5 - 0.975|) / 5
    assert expected_calibration_error(bins) == pytest.approx((0.7 + 0.15 + 0.95) / 5)


@pytest.mark.parametrize("num_bins", [5, 10, 17])
def test_reliability_bins_against_scikit_learn(num_bins: int) -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.beta(2, 1, 300)
    outcomes = (rng.random(300) < probabilities**2).astype(int)
    bins = reliability_bins(probabilities, outcomes, num_bins=num_bins)
    accuracy, confidence = calibration_curve(outcomes, probabilities, n_bins=num_bins, strategy="uniform")
    assert [b.accuracy for b in bins] == pytest.approx(list(accuracy))
    assert [b.confidence for b in bins] == pytest.approx(list(confidence))
    assert sum(b.n for b in bins) == 300


def test_a_calibrated_model_has_little_error_and_an_inverted_one_much() -> None:
    rng = np.random.default_rng(6)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(int)
    assert expected_calibration_error(reliability_bins(p, y)) < 0.02
    assert expected_calibration_error(reliability_bins(1 - p, y)) == pytest.approx(0.5, abs=0.03)


def test_soft_outcomes_are_allowed() -> None:
    assert expected_calibration_error(reliability_bins([0.25, 0.75], [0.25, 0.75])) == 0


def test_sign_flips_against_the_full_enumeration() -> None:
    differences = np.array([1.2, -0.3, 0.8, 2.0, -0.1, 0.7, 0.4, 1.1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(differences, num_flips=40_000) == pytest.approx(exact, abs=0.005)


def test_sign_flip_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(7)
    p = np.array([sign_flip_p(rng.normal(size=40), seed=i, num_flips=400) for i in range(400)])
    # Kolmogorov-Smirnov at 0.1 %: 1.95 / sqrt(400).
    grid = np.sort(p)
    assert np.abs(grid - np.arange(1, 401) / 400).max() < 0.0975


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_sign_flip_p_has_no_unit(scale: float) -> None:
    differences = np.random.default_rng(8).normal(0.5, 1, 50)
    assert sign_flip_p(differences * scale) == sign_flip_p(differences)


def test_sign_flip_p_is_one_for_no_difference_and_never_zero() -> None:
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p(np.ones(100), num_flips=99) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "values must be a non-empty list"),
        (lambda: bootstrap_mean([[1.0]]), "values must be a non-empty list"),
        (lambda: bootstrap_mean([1.0, float("nan")]), "1 values that are not finite"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), r"differ in length, got \(1, 2\)"),
        (lambda: win_rate([1.0], [1.0, 2.0]), r"differ in length, got \(1, 2\)"),
        (lambda: win_rate([float("inf")], [1.0]), "first holds 1 values that are not finite"),
        (lambda: wilson(1, 0), r"n > 0, got \(1, 0\)"),
        (lambda: wilson(3, 2), r"got \(3, 2\)"),
        (lambda: wilson(-1, 2), r"got \(-1, 2\)"),
        (lambda: sign_flip_p([]), "differences must be a non-empty list"),
        (lambda: reliability_bins([1.1], [1]), r"in \[0, 1\]"),
        (lambda: reliability_bins([0.5], [2]), r"in \[0, 1\]"),
        (lambda: reliability_bins([0.5, 0.5], [1]), "the same items"),
        (lambda: expected_calibration_error([]), "at least one item"),
    ],
)
def test_what_has_no_answer_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(EvidenceError, match=message):
        call()


def test_an_estimate_as_text() -> None:
    assert Estimate(0.5312, 0.488, 0.571, 100).shown() == "0.53 [0.49, 0.57]"
    assert Estimate(0.5312, 0.488, 0.571, 100).shown(1) == "0.5 [0.5, 0.6]"


def test_groups_of_one_change_nothing_and_their_names_do_not_matter() -> None:
    values = np.random.default_rng(0).random(50)
    plain = bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, groups=[f"p{n}" for n in range(50)], seed=3) == plain


def test_repeated_items_say_no_more_than_one_of_them() -> None:
    """Each of 40 outcomes ten times: the mean stays, and so must the interval, to the last resample. Over
    items it would be narrower by sqrt(10)."""
    outcomes = np.random.default_rng(1).integers(0, 2, 40).astype(float)
    once = bootstrap_mean(outcomes, seed=5)
    tenfold = np.repeat(outcomes, 10)
    grouped = bootstrap_mean(tenfold, groups=np.repeat(np.arange(40), 10).tolist(), seed=5)
    assert grouped[:3] == pytest.approx(once[:3]) and grouped.n == 400
    naive = bootstrap_mean(tenfold, seed=5)
    ratio = (once.high - once.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(10**0.5, rel=0.1)
    difference = paired_difference(tenfold, 1 - tenfold, groups=np.repeat(np.arange(40), 10).tolist(), seed=5)
    assert difference[:3] == pytest.approx(paired_difference(outcomes, 1 - outcomes, seed=5)[:3])


def test_groups_of_unequal_size_keep_the_mean_over_items() -> None:
    """Groups (1, 1, 1) and (0): the mean over items is 3/4, not that of group means, 1/2."""
    found = bootstrap_mean([1, 1, 1, 0], groups=["a", "a", "a", "b"])
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)
    with pytest.raises(EvidenceError, match="one group for each item"):
        bootstrap_mean([1, 0], groups=["a"])
