"""The form of messages: one printable line with what, value, expected and remedy."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueward.core import errors
from trueward.core.errors import (
    ConfigError,
    DataError,
    StorageError,
    TruewardError,
    nearest,
    printable,
    shown,
)


def test_a_message_says_what_value_expected_and_remedy() -> None:
    error = DataError("row 3 is odd", value="x", expected="a number", remedy="mend it")
    assert str(error) == "row 3 is odd, got 'x', expected a number; mend it"
    assert (error.what, error.expected, error.remedy) == ("row 3 is odd", "a number", "mend it")


def test_none_is_a_value_like_any_other() -> None:
    assert str(DataError("odd", value=None)) == "odd, got None"
    assert str(DataError("odd")) == "odd"


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("PreflightError", ValueError),
        ("ModelError", ValueError),
        ("RunError", RuntimeError),
        ("StorageError", OSError),
        ("EvidenceError", ValueError),
    ],
)
def test_every_class_is_a_trueward_and_a_builtin_error(name: str, builtin: type[Exception]) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, TruewardError)
    assert issubclass(cls, builtin)
    error = cls("odd", value=1, expected="even", remedy="add 1")
    assert str(error) == "odd, got 1, expected even; add 1"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_control_characters_are_escaped_wherever_they_come_from() -> None:
    error = StorageError(
        "cannot write a\x1b[31m\nb", value="tab\there", expected="c\r", remedy="see \u2028 \x9b"
    )
    assert str(error) == r"cannot write a\x1b[31m\nb, got 'tab\there', expected c\r; see \u2028 \x9b"


@given(st.text(alphabet=st.characters(exclude_categories=())), st.text(alphabet=st.characters()))
def test_a_message_is_one_printable_line_that_can_be_encoded(what: str, value: str) -> None:
    message = str(ConfigError(what, value=value, remedy=what))
    assert message.isprintable()
    assert len(f"{message}\n".splitlines()) <= 1
    message.encode()


def test_printable_keeps_what_a_person_reads() -> None:
    assert printable("naïve 日本語 — fine") == "naïve 日本語 — fine"
    assert printable("lone \ud800") == r"lone \ud800"


def test_a_long_value_is_cut_with_a_mark() -> None:
    text = shown("x" * 10_000_000)
    assert len(text) == 120
    assert text.endswith("…")
    assert shown("x" * 118) == repr("x" * 118)


def test_nearest_names_one_or_all() -> None:
    assert nearest("learning_rat", ["learning_rate", "epochs"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", ["b", "a"]) == "known names: a, b"
