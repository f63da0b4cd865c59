"""The charter: what ships is valid, what is wrong is refused in words, and the hash follows content only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trueward.charter import Charter, default_charter_path, load_charter
from trueward.core.config import build
from trueward.core.errors import ConfigError

TESTBED_METRICS = {
    "gold_gain_over_sft",
    "win_rate_gold",
    "harmful_refusal",
    "benign_refusal",
    "kl",
    "rm_gold_accuracy",
    "rm_ece",
    "abstention_ratio",
    "capability_retention",
    "jailbreak_success",
}
REAL_METRICS = {"win_rate_rm", "win_rate_judge", "rm_accuracy_margin_over_best_baseline", "kl"}


def body() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(default_charter_path().read_text(encoding="utf-8"))
    return loaded


def test_default_covers_the_metrics_of_both_profiles() -> None:
    charter = load_charter()
    assert {c.metric for c in charter.gates["testbed"]} == TESTBED_METRICS
    assert {c.metric for c in charter.gates["real"]} == REAL_METRICS
    assert {d.dimension for d in charter.rubric} == {"helpful", "harmless", "honest"}


def test_body_is_read_back_equal(tmp_path: Path) -> None:
    charter = load_charter()
    path = tmp_path / "charter.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(charter.body(), sort_keys=True), encoding="utf-8")
    assert load_charter(path) == charter
    assert load_charter(path).hash == charter.hash


@given(st.integers(min_value=0), st.characters(categories=["L"]))
def test_hash_changes_with_any_text(position: int, letter: str) -> None:
    changed = body()
    text = changed["principles"][0]["text"]
    at = position % len(text)
    changed["principles"][0]["text"] = text[:at] + letter + text[at + 1 :]
    same = changed["principles"][0]["text"] == text
    assert (build(Charter, changed, source="t").hash == load_charter().hash) is same


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(target: Any) -> None:
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            _set("gates", "testbed", 0, "at_most", value=1.0),
            "exactly one of at_least and at_most",
            id="both",
        ),
        pytest.param(
            _set("gates", "testbed", 0, "at_least", value=None), "exactly one of at_least", id="neither"
        ),
        pytest.param(_set("gates", "testbed", 0, "at_least", value=float("nan")), "finite", id="nan"),
        pytest.param(_set("gates", "testbed", 0, "min_n", value=0), "greater than or equal to 1", id="min_n"),
        pytest.param(
            _set("gates", "testbed", 0, "bound", value="middle"), "'value', 'low' or 'high'", id="bound"
        ),
        pytest.param(_set("gates", "testbed", 1, "id", value="gain"), "'gain' appears twice", id="repeated"),
        pytest.param(_set("gates", "testbed", value=[]), "at least 1 item", id="empty-gate"),
        pytest.param(_set("gates", "testbed", 0, "min_nn", value=3), "did you mean 'min_n'", id="unknown"),
        pytest.param(_set("hazards", 0, "id", value="../x"), "hazards.0.id", id="identifier"),
        pytest.param(_set("rubric", 0, "levels", 0, "score", value=7), "must ascend", id="levels"),
        pytest.param(_set("schema", value="trueward.charter/9"), "trueward.charter/1", id="schema"),
        pytest.param(_set("text", value="  "), "at least 1 character", id="blank"),
    ],
)
def test_wrong_charters_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    wrong = body()
    change(wrong)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build(Charter, wrong, source="charter.yaml")


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_charter(tmp_path / "none.yaml")
