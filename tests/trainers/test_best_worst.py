"""Best against worst: hand values, ties, what is refused."""

import math

import pytest

from trueward.core.errors import DataError
from trueward.data.chat import Completion, TokenGroup
from trueward.trainers.best_worst import best_against_worst


def group(name: str, *ids: int) -> TokenGroup:
    return TokenGroup((1, 2), tuple(Completion((i,), (True,)) for i in ids), name)


def test_hand_values() -> None:
    groups = [group("a", 10, 11, 12), group("b", 20, 21), group("c", 30, 31, 32), group("d", 40, 41, 40)]
    #                   a: 11 over 10        b: all alike  c: first of equals   d: the same tokens
    scores = [*(-1.0, 2.5, 0.0), *(0.5, 0.5), *(0.0, 1.0, 1.0), *(1.0, 0.75, 0.5)]
    made = best_against_worst(groups, scores)
    assert [(g.id, g.completions[0].ids, g.completions[1].ids) for g in made.groups] == [
        ("a", (11,), (10,)),
        ("c", (31,), (30,)),
    ]
    assert made.gaps == [3.5, 1.0]
    assert made.rows == [(0, 1, 0), (2, 1, 0)]
    assert made.ties == 2
    assert all(g.prompt_ids == (1, 2) for g in made.groups)


@pytest.mark.parametrize(
    ("groups", "scores"),
    [
        ([group("a", 1)], [1.0]),
        ([group("a", 1, 2)], [1.0]),
        ([group("a", 1, 2)], [1.0, 2.0, 3.0]),
        ([group("a", 1, 2)], [1.0, math.nan]),
    ],
    ids=["group of one", "too few", "too many", "nan"],
)
def test_refused(groups: list[TokenGroup], scores: list[float]) -> None:
    with pytest.raises(DataError, match="finite score of each of at least two completions"):
        best_against_worst(groups, scores)


def test_no_prompt_no_pair() -> None:
    assert best_against_worst([], []) == ([], [], [], 0)
