"""The summary: what does not fit is refused, what cannot be printed becomes visible."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports.example import bare, est, summary
from trueward.core.errors import EvidenceError
from trueward.reports import read_summary
from trueward.reports.summary import visible


def test_the_example_and_a_bare_run_fit() -> None:
    assert [stage.stage for stage in read_summary(summary()).stages] == ["base", "sft", "dpo", "ppo"]
    checked = read_summary(bare())
    assert checked.gate is None and checked.curves.ppo == () and checked.reward_model is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"schema": "trueward.summary/9"}, "schema", id="schema"),
        pytest.param({"stages": []}, "stages", id="no-stages"),
        pytest.param({"titel": "x"}, "did you mean 'title'", id="unknown-key"),
        pytest.param({"total_s": float("nan")}, "total_s", id="nan"),
        pytest.param(
            {"stages": [{"stage": "sft", "scores": {"gold": 0.3}, "seconds": 1}]}, "gold", id="bare-number"
        ),
        pytest.param(
            {"gate": {"passed": True, "subject": "x", "criteria": [{"id": "a"}]}}, "missing", id="criterion"
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        read_summary({**bare(), **change})


@given(st.text(alphabet=st.characters(codec=None)))
def test_visible_text_can_be_written_and_shown(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not any(ord(c) < 0x20 and c not in "\n\t" for c in shown)
    assert not set(shown) & set("\x7f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a⟦U+0000⟧b"),
        ("\ud800", "⟦U+D800⟧"),
        ("\u202e", "⟦U+202E⟧"),
        ("tab\tline\n", "tab\tline\n"),
    ],
    ids=["nul", "surrogate", "override", "kept"],
)
def test_marks(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert read_summary({**bare(), "notes": [text]}).notes == (shown,)


def test_figures_are_kept_exactly() -> None:
    stage = {"stage": "sft", "scores": {"gold": est(0.123456789)}, "seconds": 1}
    assert read_summary({**bare(), "stages": [stage]}).stages[0].scores["gold"].value == 0.123456789
