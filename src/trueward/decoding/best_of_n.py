"""Best of n: which of several completions to take, and what that is worth, from one table of N >= n of them.

What a choice is worth at n is its mean over all subsets of n of the N completions: unbiased for fresh draws,
and of less variance than the value of any one subset. Works on scores and values, not on models.
Axes: N completions of one prompt, D subsets, C different answers.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trueward.core.seed import generator
from trueward.objectives import STEP_AGGREGATIONS

__all__ = [
    "best_of_n",
    "expected_best",
    "expected_pass",
    "expected_vote",
    "kl_bound",
    "solution_scores",
]

# Subsets that are counted one by one; where there are more, as many are drawn.
_MAX_SUBSETS = 2000


def solution_scores(
    step_logps: Sequence[Sequence[float]], *, aggregation: Literal["min", "product"]
) -> list[float]:
    """Score of each completion from its steps, nats.

    Args:
        step_logps: for each completion, the log-probability of each step that it is right.
        aggregation: `min`: the most doubtful step decides; `product`: all of them do.

    Raises:
        ValueError: no completion, one without steps, or a log-probability above 0.

    Source:
        Lightman et al. 2023 (2305.20050), section 2.6 and appendix F.
    """
    if not step_logps:
        raise ValueError("at least one completion is needed, got none")
    longest = max(map(len, step_logps))
    logps_BT = torch.tensor(
        [[*row, *[0.0] * (longest - len(row))] for row in step_logps], dtype=torch.float64
    )
    ends_BT = torch.tensor([[t < len(row) for t in range(longest)] for row in step_logps])
    scores: list[float] = STEP_AGGREGATIONS[aggregation](logps_BT, ends_BT).tolist()
    return scores


def best_of_n(step_logps: Sequence[Sequence[float]], *, aggregation: Literal["min", "product"]) -> int:
    """Index of the completion whose steps are the most surely right; the first of equals.

    Args, raises and source: as `solution_scores`.
    """
    return int(np.argmax(solution_scores(step_logps, aggregation=aggregation)))


def _checked(n: int, *rows: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(row, dtype=np.float64) for row in rows]
    count = arrays[0].size
    if any(array.ndim != 1 or array.size != count or np.isnan(array).any() for array in arrays):
        raise ValueError(f"rows must be of one length without nan, got {[array.shape for array in arrays]}")
    if not 1 <= n <= count:
        raise ValueError(f"n must be between 1 and the {count} completions, got {n}")
    return arrays


def expected_best(scores_N: ArrayLike, values_N: ArrayLike, *, n: int) -> float:
    """Mean value of the completion with the highest score in a subset of n, over all subsets.

        sum over groups of equal score of  mean value * (C(N - a, n) - C(N - a - g, n)) / C(N, n)

    where a completions score above the group of g: some of the group is in the subset, and none above it.
    Equals are taken with equal chance.

    Args:
        scores_N: what is chosen by; minus infinity for one without a score.
        values_N: what the choice is worth, finite.

    Raises:
        ValueError: n out of range, lengths that differ, or a value that is nan.

    Source:
        For a 0-1 value and a score without ties: Nakano et al. 2021 (2112.09332), appendix I; here with ties.
    """
    scores, values = _checked(n, scores_N, values_N)
    total, above, result = math.comb(scores.size, n), 0, 0.0
    for score in np.unique(scores)[::-1]:
        group = values[scores == score]
        left = scores.size - above
        weight = math.comb(left, n) - math.comb(left - group.size, n)
        result += float(group.mean()) * (weight / total)
        above += group.size
    return result


def expected_pass(right_N: ArrayLike, *, n: int) -> float:
    """Share of the subsets of n that hold a right completion, what an oracle would choose: pass@n.

    Raises:
        ValueError: as `expected_best`.

    Source:
        Chen et al. 2021 (2107.03374), eq. 1: 1 - C(N - c, n) / C(N, n).
    """
    (right,) = _checked(n, right_N)
    return 1 - math.comb(right.size - int((right > 0).sum()), n) / math.comb(right.size, n)


def _subsets(count: int, n: int, seed: int) -> NDArray[np.int64]:
    """All subsets of n of `count`, or as many drawn ones as are counted at most; subsets_Dn."""
    if math.comb(count, n) <= _MAX_SUBSETS:
        return np.array(list(itertools.combinations(range(count), n)), dtype=np.int64)
    ranks = generator(seed, "subsets").random((_MAX_SUBSETS, count)).argsort(axis=1)
    return ranks[:, :n]


def expected_vote(
    answers_N: Sequence[str | None],
    values_N: ArrayLike,
    *,
    n: int,
    weights_N: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Mean value of the answer that most of a subset of n give, over subsets; equals with equal chance.

    Args:
        answers_N: final answer of each completion, equal texts for equal answers; None states none, and is
            taken only where no completion of the subset states one.
        values_N: what a completion is worth; an answer is worth the mean of those that give it.
        weights_N: >= 0, weight of each vote; None counts heads.
        seed: decides which subsets are looked at where there are more than 2,000.

    Raises:
        ValueError: as `expected_best`, or a negative weight.

    Source:
        Wang et al. 2022 (2203.11171), section 2; weighted: Li et al. 2022 (2206.02336), section 3.
    """
    heads = np.ones(len(answers_N)) if weights_N is None else weights_N
    values, weights = _checked(n, values_N, heads)
    if (weights < 0).any() or len(answers_N) != values.size:
        raise ValueError("votes need one answer each and weights >= 0")
    names = sorted({answer for answer in answers_N if answer is not None})
    member_NC = np.array([[answer == name for name in (*names, None)] for answer in answers_N], dtype=float)
    worth_C = np.array([values[column > 0].mean() if column.any() else 0.0 for column in member_NC.T])
    subsets_Dn = _subsets(values.size, n, seed)
    votes_DC = (member_NC * weights[:, None])[subsets_Dn].sum(axis=1)
    present_DC = member_NC[subsets_Dn].sum(axis=1) > 0
    # No answer loses to every answer that is there.
    present_DC[:, -1] &= ~present_DC[:, :-1].any(axis=1)
    votes_DC = np.where(present_DC, votes_DC, -np.inf)
    # Sums in another order differ in their last bits, and must still count as equal.
    best_DC = votes_DC >= votes_DC.max(axis=1, keepdims=True) - 1e-12
    return float(((best_DC * worth_C).sum(axis=1) / best_DC.sum(axis=1)).mean())


def kl_bound(n: int) -> float:
    """Upper bound of KL(best of n || policy), nats: log n - (n - 1) / n. The KL itself may be far smaller.

    Raises:
        ValueError: n < 1.

    Source:
        Stiennon et al. 2020 (2009.01325), appendix G.3; that it bounds: Beirami et al. 2024 (2401.01879).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n
