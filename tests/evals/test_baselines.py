"""Baselines: hand values, the word model against scikit-learn, and the verdict in words."""

from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from trueward.core.errors import EvidenceError
from trueward.evals.baselines import (
    bag_of_words_baseline,
    chance_baseline,
    fit_bag_of_words,
    longer_answer_baseline,
    verdict,
)
from trueward.evals.reward_model import evaluate_reward_model

WORDS = [*"abcdefghij", "please", "sorry", "no", "yes"]


def pairs(num: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pairs in which the chosen answer holds `please` more often."""
    rng = np.random.default_rng(seed)
    rows = [[" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(2)] for _ in range(num)]
    keys = [[text.split().count("please") + rng.gumbel() * 0.3 for text in row] for row in rows]
    ordered = [row if a > b else row[::-1] for row, (a, b) in zip(rows, keys, strict=True)]
    return [row[0] for row in ordered], [row[1] for row in ordered]


@pytest.mark.parametrize("l2", [0.1, 3.0])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_word_model_equals_scikit_learn(l2: float, soft: bool) -> None:
    chosen, rejected = pairs(80)
    labels = np.random.default_rng(1).random(80) if soft else np.ones(80)
    judge = fit_bag_of_words(chosen, rejected, soft_labels=labels if soft else None, l2=l2, min_pairs=1)
    vectors = CountVectorizer(token_pattern=r"\S+").fit(chosen + rejected)
    x = np.log1p(vectors.transform(chosen).toarray()) - np.log1p(vectors.transform(rejected).toarray())
    # Both classes must be there: each pair once as a win with its label's weight, once as a loss with the
    # rest.
    oracle: Any = LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-10, max_iter=5000)
    oracle.fit(
        np.concatenate([x, x, -x, -x]),
        np.repeat([1, 0, 0, 1], 80),
        sample_weight=0.5 * np.concatenate([labels, 1 - labels, labels, 1 - labels]),
    )
    words = vectors.get_feature_names_out()
    assert sorted(judge.weights) == list(words)
    # Two optimisers of one strongly convex function: they agree to their gradient tolerance.
    np.testing.assert_allclose([judge.weights[w] for w in words], oracle.coef_[0], atol=2e-4)


def test_word_model_learns_and_is_repeatable() -> None:
    judge = fit_bag_of_words(*pairs(300))
    assert max(judge.weights, key=lambda word: judge.weights[word]) == "please"
    assert judge.weights == fit_bag_of_words(*pairs(300)).weights
    held_out = bag_of_words_baseline(judge, *pairs(200, seed=9))
    assert held_out.accuracy.low > 0.55 and held_out.accuracy.n == 200
    assert judge("ignored", "please") == pytest.approx(judge.weights["please"] * np.log(2))
    assert judge("", "unheard-of 日本 ...") == 0.0


def test_words_seen_in_too_few_pairs_get_no_weight() -> None:
    judge = fit_bag_of_words(["good day", "good", "Don't, good"], ["bad", "bad", "bad"], min_pairs=2)
    assert sorted(judge.weights) == ["bad", "good"]
    assert "don't" in fit_bag_of_words(["Don't go"], ["go"], min_pairs=1).weights


def test_longer_answer_and_chance() -> None:
    longer = longer_answer_baseline([5, 3, 4, 9], [2, 7, 4, 1])
    assert longer.outcomes == (1.0, 0.0, 0.5, 1.0) and longer.accuracy.value == 0.625
    chance = chance_baseline(4, soft_labels=[1, 0.5, 0, 1])
    assert chance.outcomes == (0.5,) * 3 and chance.accuracy == (0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(
    ("margin_of_wins", "word"),
    [(0.9, "beats"), (0.53, "does not beat"), (0.1, "is worse than")],
    ids=["better", "same", "worse"],
)
def test_verdict_says_what_the_interval_says(margin_of_wins: float, word: str) -> None:
    wins = np.arange(200) < 200 * margin_of_wins
    report = evaluate_reward_model(wins.astype(float), 1.0 - wins)
    text = verdict(report, [chance_baseline(200)])
    assert text.startswith(
        f"{word} the chance baseline: {margin_of_wins:.2f} vs 0.50, difference {margin_of_wins - 0.5:+.2f} ["
    )
    assert text.endswith("n = 200") and "\n" not in text


def test_verdict_is_paired() -> None:
    # The model errs where the baseline errs, and on 10 of 400 pairs more; unpaired the difference would
    # drown.
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.55
    model = base.copy()
    model[np.flatnonzero(base)[:10]] = False
    report = evaluate_reward_model(model.astype(float), 1.0 - model)
    longer = longer_answer_baseline(base.astype(int), 1 - base.astype(int))
    lines = verdict(report, [longer, chance_baseline(400)]).split("\n")
    assert lines[0].startswith("is worse than the longer answer baseline") and len(lines) == 2


def test_wrong_input_raises() -> None:
    report = evaluate_reward_model([1.0], [0.0])
    with pytest.raises(EvidenceError, match="other pairs"):
        verdict(report, [chance_baseline(2)])
    with pytest.raises(EvidenceError, match="not as many chosen"):
        longer_answer_baseline([1, 2], [1])
    with pytest.raises(EvidenceError, match="not as many chosen"):
        fit_bag_of_words(["a"], [])
    with pytest.raises(EvidenceError, match="no pairs"):
        fit_bag_of_words([], [])
    with pytest.raises(EvidenceError, match="l2 must be > 0"):
        fit_bag_of_words(["a"], ["b"], l2=0)
    with pytest.raises(EvidenceError, match="no word tells"):
        fit_bag_of_words(["a b"], ["b a"], min_pairs=1)
    with pytest.raises(EvidenceError, match="not as many chosen"):
        bag_of_words_baseline(fit_bag_of_words(["a"], ["b"], min_pairs=1), ["a"], [])
