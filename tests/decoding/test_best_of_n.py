"""Best of n: by hand, against all subsets counted plainly, ties, votes, and the bound."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from trueward.decoding import (
    best_of_n,
    expected_best,
    expected_pass,
    expected_vote,
    kl_bound,
    solution_scores,
)


def over_subsets(size: int, n: int, value: Callable[[Sequence[int]], float]) -> float:
    """The mean of a value over all subsets, one by one."""
    found = [value(subset) for subset in itertools.combinations(range(size), n)]
    return sum(found) / len(found)


def test_the_choice_by_hand() -> None:
    # Products 0.36, 0.4, 0.45; least steps 0.6, 0.4, 0.5.
    rows = [[math.log(0.6), math.log(0.6)], [math.log(0.4)], [math.log(0.9), math.log(0.5), 0.0]]
    assert best_of_n(rows, aggregation="min") == 0
    assert best_of_n(rows, aggregation="product") == 2
    assert best_of_n([rows[1], rows[1]], aggregation="min") == 0
    assert solution_scores(rows, aggregation="product") == pytest.approx(
        [math.log(p) for p in (0.36, 0.4, 0.45)]
    )
    with pytest.raises(ValueError, match="at least one completion"):
        best_of_n([], aggregation="min")
    with pytest.raises(ValueError, match="row 1 has none"):
        best_of_n([[0.0], []], aggregation="product")


def test_expected_best_by_hand() -> None:
    # Subsets of 2 of scores 3, 2, 1 with values 0, 1, 5: {3,2} -> 0, {3,1} -> 0, {2,1} -> 1.
    assert expected_best([3, 2, 1], [0, 1, 5], n=2) == pytest.approx(1 / 3)
    assert expected_best([3, 2, 1], [0, 1, 5], n=1) == pytest.approx(2.0)
    assert expected_best([3, 2, 1], [0, 1, 5], n=3) == 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("levels", [2, 100], ids=["many ties", "no ties"])
def test_expectations_are_means_over_all_subsets(n: int, levels: int) -> None:
    rng = np.random.default_rng(n)
    scores, values = rng.integers(levels, size=7) / levels, rng.normal(size=7)
    scores[0] = -np.inf
    right = (values > 0.5).astype(float)

    def chosen(subset: Sequence[int]) -> float:
        best = max(scores[i] for i in subset)
        return float(np.mean([values[i] for i in subset if scores[i] == best]))

    assert expected_best(scores, values, n=n) == pytest.approx(over_subsets(7, n, chosen))
    passed = over_subsets(7, n, lambda subset: float(any(right[i] for i in subset)))
    assert expected_pass(right, n=n) == pytest.approx(passed)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_votes_are_means_over_all_subsets(n: int, weighted: bool) -> None:
    answers = ["7", "7", None, "8", "9", None]
    right = [1.0 if answer == "7" else 0.0 for answer in answers]
    weights = [0.2, 0.3, 5.0, 0.6, 0.1, 0.0] if weighted else [1.0] * 6

    def voted(subset: Sequence[int]) -> float:
        votes: Counter[str] = Counter()
        for i in subset:
            if (answer := answers[i]) is not None:
                votes[answer] += weights[i]  # type: ignore[assignment]
        if not votes:
            return 0.0
        top = max(votes.values())
        winners = [answer for answer, count in votes.items() if abs(count - top) < 1e-9]
        return sum(answer == "7" for answer in winners) / len(winners)

    found = expected_vote(answers, right, n=n, weights_N=weights if weighted else None)
    assert found == pytest.approx(over_subsets(6, n, voted))


def test_votes_over_many_subsets_are_drawn_by_seed() -> None:
    rng = np.random.default_rng(0)
    answers = [str(x) for x in rng.integers(3, size=24)]
    right = [float(answer == "1") for answer in answers]
    first, again, other = (expected_vote(answers, right, n=8, seed=seed) for seed in (0, 0, 1))
    assert first == again
    # 2,000 subsets: the standard error of a share is at most 0.011, so two such means lie within 0.06.
    assert abs(first - other) < 0.06
    permuted = rng.permutation(24)
    moved = expected_vote([answers[i] for i in permuted], [right[i] for i in permuted], n=8)
    assert abs(first - moved) < 0.06


def test_order_does_not_matter_and_equal_scores_choose_the_mean() -> None:
    scores, values = [0.1, 0.5, 0.5, 0.9], [1.0, 0.0, 1.0, 0.0]
    order = [2, 0, 3, 1]
    assert expected_best(scores, values, n=2) == pytest.approx(
        expected_best([scores[i] for i in order], [values[i] for i in order], n=2)
    )
    assert expected_best([1.0] * 4, values, n=3) == pytest.approx(0.5)


def test_the_bound_by_hand() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    with pytest.raises(ValueError, match="at least 1"):
        kl_bound(0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: expected_best([1, 2], [0, 1], n=3), "between 1 and the 2"),
        (lambda: expected_best([1, 2], [0, 1], n=0), "between 1 and the 2"),
        (lambda: expected_best([1, 2], [0], n=1), "of one length"),
        (lambda: expected_best([1, float("nan")], [0, 1], n=1), "without nan"),
        (lambda: expected_vote(["a", "b"], [0, 1], n=1, weights_N=[1, -1]), "weights >= 0"),
    ],
)
def test_wrong_input(call: Callable[[], float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
