"""Simulated annotators: the probability of a choice by hand, its limits, and exact repetition."""

import math

import pytest

from trueward.core.seed import generator
from trueward.testbed import ANNOTATORS, Annotator, choice_probability, compare_replies, make_world, prompts
from trueward.testbed.annotators import choose

PLAIN = Annotator("plain", 0.5, 0.0, 0.0)


def test_choice_by_hand() -> None:
    # (1 - 0.5) / 0.5 = 1; with 10 tokens at 0.02 each: (0.5 + 0.2) / 0.5 = 1.4.
    assert choice_probability(PLAIN, (1.0, 0.5), (3, 3)) == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-12)
    biased = Annotator("biased", 0.5, 0.02, 0.0)
    assert choice_probability(biased, (1.0, 0.5), (13, 3)) == pytest.approx(
        1 / (1 + math.exp(-1.4)), abs=1e-12
    )
    lapsing = Annotator("lapsing", 0.5, 0.0, 0.2)
    assert choice_probability(lapsing, (1.0, 0.5), (3, 3)) == pytest.approx(
        0.1 + 0.8 / (1 + math.exp(-1)), abs=1e-12
    )


def test_choice_at_its_limits() -> None:
    assert choice_probability(PLAIN, (0.3, 0.3), (5, 5)) == 0.5
    assert choice_probability(PLAIN, (100.0, 0.0), (1, 1)) == pytest.approx(1.0)
    assert choice_probability(PLAIN, (-100.0, 0.0), (1, 1)) == pytest.approx(0.0)
    assert choice_probability(Annotator("coin", 0.5, 0.0, 1.0), (9.0, 0.0), (1, 1)) == 0.5


@pytest.mark.parametrize("annotator", ANNOTATORS, ids=lambda a: a.name)
def test_either_order_gives_the_same_choice(annotator: Annotator) -> None:
    there = choice_probability(annotator, (0.7, -0.2), (4, 9))
    back = choice_probability(annotator, (-0.2, 0.7), (9, 4))
    assert there + back == pytest.approx(1.0, abs=1e-12)
    assert there > 0.5


def test_choices_come_as_often_as_stated() -> None:
    rng = generator(0, "choices")
    chosen = sum(choose(PLAIN, (1.0, 0.5), (3, 3), rng) for _ in range(4000))
    p = 1 / (1 + math.exp(-1))
    assert abs(chosen / 4000 - p) < 4 * (p * (1 - p) / 4000) ** 0.5


def test_comparing_repeats_exactly_and_leaves_out_identical_replies() -> None:
    asked = prompts(make_world(), 40, held_out=False, seed=0)
    replies = [("i do not know .", "i can not help with that .") for _ in asked[:-1]] + [("7 .", "7 .")]
    first = list(compare_replies(asked, replies, charter="c", seed=3))
    assert first == list(compare_replies(asked, replies, charter="c", seed=3))
    assert first != list(compare_replies(asked, replies, charter="c", seed=4))
    assert len(first) == 39
    for record, prompt in zip(first, asked, strict=False):
        assert record.prompt == prompt.messages
        assert {record.chosen, record.rejected} == set(replies[0])
        assert record.meta.charter == "c"
        assert record.meta.annotator in {annotator.name for annotator in ANNOTATORS}
        assert {"gold_chosen", "gold_rejected"} <= set(record.meta.extra)
    assert len({record.id for record in first}) == len(first)
