"""Drawn solutions in steps, along their tokens; and what of them cannot be tokenised."""

import pytest

from trueward.data.chat import Dropped
from trueward.data.records import Message, RecordError, StepLabels
from trueward.data.steps import drawn_steps, outcome_label, tokenise_steps
from trueward.models.tiny import tiny_tokenizer


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def cut(text: str, end: str = "\n") -> list[tuple[str, int]]:
    return [tuple(step) for step in drawn_steps(list(map(ord, text)), decode=decode, end=end)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("ab\ncd", "\n", [("ab", 3), ("cd", 5)]),
        ("ab\n\ncd\n", "\n", [("ab", 3), ("cd", 7)]),
        ("\n\nab", "\n", [("ab", 4)]),
        ("ab\n  ", "\n", [("ab", 5)]),
        ("a . b . c", " .", [("a .", 3), ("b .", 7), ("c", 9)]),
        ("ab", "\n", [("ab", 2)]),
        (" \n", "\n", []),
        ("", "\n", []),
    ],
)
def test_steps_by_hand(text: str, end: str, expected: list[tuple[str, int]]) -> None:
    assert cut(text, end) == expected


def test_a_token_that_holds_the_end_and_more_belongs_to_the_step_it_ends() -> None:
    words = ["one", ".\nTwo", " is", "\n"]
    found = drawn_steps(range(4), decode=lambda ids: "".join(words[i] for i in ids), end="\n")
    assert [tuple(step) for step in found] == [("one.\nTwo", 2), ("is", 4)]


def test_shares_are_checked_and_an_outcome_has_none() -> None:
    ask = (Message("user", "?"),)
    record = StepLabels(id="s", prompt=ask, steps=("a", "b"), labels=(1, -1), soft_labels=(0.5, 0.0))
    assert outcome_label(record, right=True).labels == (None, 1)
    assert outcome_label(record, right=True).soft_labels is None
    for wrong in ((0.5,), (0.5, 1.5), (0.5, float("nan")), (0.5, True)):
        with pytest.raises(RecordError, match="soft_labels"):
            StepLabels(id="s", prompt=ask, steps=("a", "b"), labels=(1, -1), soft_labels=wrong)


def test_soft_labels_travel_with_the_tokens() -> None:
    ask = (Message("user", "?"),)
    record = StepLabels(id="s", prompt=ask, steps=("a", "b"), labels=(1, -1), soft_labels=(0.5, None))
    (item,) = tokenise_steps(tiny_tokenizer(), [record])
    assert not isinstance(item, Dropped) and item.soft_labels == (0.5, None)
