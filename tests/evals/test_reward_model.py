"""Reward-model figures against values worked out by hand."""

import math

import numpy as np
import pytest

from trueward.core.errors import EvidenceError
from trueward.evals.reward_model import evaluate_reward_model, pair_outcomes


def test_hand_values() -> None:
    # Margins 1, -1, 0, 3: right, wrong, tied, right.
    report = evaluate_reward_model([1.0, 0.0, 2.0, 3.0], [0.0, 1.0, 2.0, 0.0])
    assert report.outcomes == (1.0, 0.0, 0.5, 1.0)
    assert report.accuracy.value == 0.625 and report.accuracy.n == 4
    assert report.mean_margin == 0.75
    # -log sigmoid of each margin: log(1 + e^-1), log(1 + e), log 2, log(1 + e^-3).
    assert report.loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in (1, -1, 0, 3)) / 4, abs=1e-12)
    assert report.metrics() == {
        "eval/loss": report.loss,
        "eval/accuracy": 0.625,
        "eval/rewards/margins": 0.75,
    }
    assert (report.tied_scores, report.tied_labels) == (1, 0)
    # Confidences .7311 twice (one right, one wrong), .5 (half right), .9526 (right), in bins .7-.8, .5-.6 and
    # .9-1.
    s1, s3 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert report.ece == pytest.approx((2 * (s1 - 0.5) + 0 + (1 - s3)) / 4, abs=1e-12)
    assert [(b.n, round(b.accuracy, 6)) for b in report.bins] == [(1, 0.5), (2, 0.5), (1, 1.0)]
    assert report.gold_accuracy is None and report.gold_ties == 0


def test_orientation_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b, labels = rng.normal(size=300), rng.normal(size=300), rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], 300)
    b[:10] = a[:10]
    gold = rng.choice([-1.0, 0.0, 2.0], 300)
    flip = rng.random(300) < 0.5
    first = evaluate_reward_model(a, b, soft_labels=labels, gold_differences=gold)
    second = evaluate_reward_model(
        np.where(flip, b, a),
        np.where(flip, a, b),
        soft_labels=np.where(flip, 1 - labels, labels),
        gold_differences=np.where(flip, -gold, gold),
    )
    assert first.outcomes == second.outcomes and first.accuracy == second.accuracy
    assert first.gold_accuracy == second.gold_accuracy and first.gold_ties == second.gold_ties > 0
    assert first.ece == pytest.approx(second.ece, abs=1e-12)
    assert first.mean_margin == pytest.approx(second.mean_margin, abs=1e-12)
    assert first.loss == pytest.approx(second.loss, abs=1e-12)


def test_a_calibrated_model_has_a_small_error_and_a_bold_one_a_large_one() -> None:
    rng = np.random.default_rng(1)
    margins = rng.normal(size=20_000)
    won = rng.random(20_000) < 1 / (1 + np.exp(-margins))
    chosen, rejected = np.where(won, margins, 0), np.where(won, 0, margins)
    assert evaluate_reward_model(chosen, rejected).ece < 0.015
    assert evaluate_reward_model(5 * chosen, 5 * rejected).ece > 0.15


def test_soft_labels_and_tied_labels() -> None:
    report = evaluate_reward_model([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], soft_labels=[0.8, 0.5, 0.1])
    assert report.outcomes == (1.0, 0.0) and report.tied_labels == 1
    assert report.mean_margin == 0.0
    # At margin 1 a label y costs log(1 + 1/e) + (1 - y).
    assert report.loss == pytest.approx(math.log1p(math.exp(-1)) + 1.6 / 3, abs=1e-12)
    assert report.ece == pytest.approx(1 / (1 + math.exp(-1)) - (0.8 + 0.5 + 0.1) / 3, abs=1e-12)


def test_gold_accuracy_leaves_equal_pairs_out() -> None:
    report = evaluate_reward_model([1, 0, 1, 0], [0, 1, 0, 0], gold_differences=[0.5, 0.5, 0.0, -1.0])
    assert report.gold_accuracy is not None
    assert report.gold_accuracy.value == 0.5 and report.gold_accuracy.n == 3 and report.gold_ties == 1
    assert evaluate_reward_model([1], [0], gold_differences=[0]).gold_accuracy is None


def test_interval_depends_on_the_seed_alone() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 50))
    one, again, other = (evaluate_reward_model(*scores, seed=seed).accuracy for seed in (1, 1, 2))
    assert one == again and one != other and one.low < one.value < one.high


@pytest.mark.parametrize(
    ("chosen", "rejected", "options", "message"),
    [
        ([], [], {}, "no pairs"),
        ([1.0], [1.0, 2.0], {}, "not as many chosen"),
        ([math.nan], [1.0], {}, "not finite"),
        ([1.0], [0.0], {"soft_labels": [1.2]}, r"in \[0, 1\]"),
        ([1.0], [0.0], {"soft_labels": [math.nan]}, r"in \[0, 1\]"),
        ([1.0], [0.0], {"soft_labels": [1, 1]}, "one soft label for each"),
        ([1.0], [0.0], {"soft_labels": [0.5]}, "labelled a tie"),
        ([1.0], [0.0], {"gold_differences": [1, 1]}, "one gold difference for each"),
    ],
    ids=["none", "counts", "nan", "label", "nan label", "labels", "ties", "gold"],
)
def test_wrong_input_raises(
    chosen: list[float], rejected: list[float], options: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(EvidenceError, match=message):
        evaluate_reward_model(chosen, rejected, **options)


def test_outcomes_of_margins() -> None:
    assert pair_outcomes([2, -1, 0, 5], [1, 0.3, 1, 0.5]).tolist() == [1.0, 1.0, 0.5]


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    """Twenty prompts of five pairs, all right or all wrong: the interval is that of twenty items. A tie in
    between takes its group's name along, so that the others stay with their own."""
    right = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 5).astype(float)
    groups = np.repeat(np.arange(20), 5).tolist()
    plain = evaluate_reward_model(right, 1 - right)
    grouped = evaluate_reward_model(right, 1 - right, groups=groups)
    width = (grouped.accuracy.high - grouped.accuracy.low) / (plain.accuracy.high - plain.accuracy.low)
    assert grouped.accuracy.value == plain.accuracy.value and 1.8 < width < 2.7
    labels = [1.0] * 100
    labels[7] = 0.5
    tied = evaluate_reward_model(right, 1 - right, groups=groups, soft_labels=labels)
    assert tied.groups == tuple(groups[:7] + groups[8:])
    with pytest.raises(EvidenceError, match="one group for each pair"):
        evaluate_reward_model([1.0], [0.0], groups=[1, 2])
