"""Splits: no prompt is in two of them, shares are as asked, nothing depends on order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueward.core.errors import ConfigError
from trueward.data.records import Comparison, Demonstration, Message, Prompt, Text
from trueward.data.split import prompt_key, split_of

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@given(
    st.text(min_size=1).filter(lambda t: bool(t.strip()) and t.isascii() and "\0" not in t),
    st.integers(0, 99),
)
def test_whatever_follows_the_first_user_message_is_in_the_same_split(ask: str, seed: int) -> None:
    user = Message("user", ask)
    longer = (user, Message("assistant", "a"), Message("user", "and?"))
    records = [
        Prompt(id="1", messages=(Message("system", "s"), Message("user", f" {ask.upper().lower()}\n"))),
        Demonstration(id="2", messages=(*longer, Message("assistant", "x"))),
        Comparison(id="3", prompt=longer, chosen="x", rejected="y"),
    ]
    assert len({split_of(prompt_key(record), FRACTIONS, seed=seed) for record in records}) == 1


def test_shares_and_seed() -> None:
    keys = [f"question {n}" for n in range(5000)]
    splits = [split_of(key, FRACTIONS, seed=0) for key in keys]
    # 5000 draws: the standard deviation of the train share is 0.006.
    assert abs(splits.count("train") / 5000 - 0.8) < 0.02 and abs(splits.count("test") / 5000 - 0.1) < 0.02
    assert splits != [split_of(key, FRACTIONS, seed=1) for key in keys]
    assert split_of("question 1", FRACTIONS, seed=0) == splits[1]


def test_text_key() -> None:
    assert prompt_key(Text(id="1", text="A  b")) == "a b"


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.6, "b": 0.6}])
def test_bad_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        split_of("x", fractions, seed=0)
    assert split_of("x", {"none": 0.0, "all": 1.0}, seed=0) == "all"
