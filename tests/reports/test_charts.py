"""Charts: every panel has either a drawing or a sentence, and a drawing holds the figures it was given."""

import json
from typing import Any

import pytest

from tests.reports.example import bare, est, rate, summary
from trueward.reports import read_summary
from trueward.reports.chart_style import Panel
from trueward.reports.evaluation_charts import category_panels, refusal_panel, score_panels, win_panels
from trueward.reports.reward_charts import baselines_panel, reliability_panel
from trueward.reports.training_charts import dpo_panels, look_panels, ppo_panels


def panels(body: dict[str, Any]) -> dict[str, Panel]:
    checked = read_summary(body)
    found = [
        *score_panels(checked),
        refusal_panel(checked),
        *category_panels(checked),
        reliability_panel(checked.reward_model),
        baselines_panel(checked.reward_model),
        *ppo_panels(checked),
        *dpo_panels(checked),
        *look_panels(checked),
        *win_panels(checked),
    ]
    assert len({panel.id for panel in found}) == len(found)
    return {panel.id: panel for panel in found}


def numbers(panel: Panel, field: str) -> list[float]:
    assert panel.spec is not None
    rows = [row for data in panel.spec["datasets"].values() for row in data]
    return [row[field] for row in rows if field in row]


def test_everything_measured_is_drawn() -> None:
    assert all(panel.spec is not None and panel.absent is None for panel in panels(summary()).values())


def test_nothing_measured_is_said_in_words() -> None:
    for panel in panels(bare()).values():
        assert panel.spec is None
        assert panel.absent is not None and panel.absent.endswith(".") and len(panel.absent.split()) > 5


def test_no_panel_is_without_data() -> None:
    for panel in panels(summary()).values():
        assert panel.spec is not None and all(panel.spec["datasets"].values())


@pytest.mark.parametrize(
    ("part", "id_", "words"),
    [
        pytest.param("reward_model", "reliability", "No reward model", id="reward-model"),
        pytest.param("curves", "ppo-unbounded", "No PPO without a KL penalty", id="unbounded"),
        pytest.param("win_matrix", "wins", "not compared", id="wins"),
    ],
)
def test_a_missing_part_has_a_reason(part: str, id_: str, words: str) -> None:
    body = summary()
    del body[part]
    made = panels(body)[id_]
    assert made.absent is not None and words in made.absent


def test_absent_unbounded_run_leaves_the_other_curve() -> None:
    body = summary()
    del body["curves"]["ppo_unbounded"]
    made = panels(body)
    assert made["ppo"].spec is not None and made["ppo-unbounded"].spec is None


def test_unknown_truth_draws_only_the_proxy() -> None:
    body = summary()
    body["curves"]["ppo"] = [{**point, "gold": None} for point in body["curves"]["ppo"]]
    made = panels(body)["ppo"]
    assert "The truth was not measured" in made.caption
    assert len(numbers(made, "value")) == len(body["curves"]["ppo"])


def test_figures_reach_the_chart_unchanged() -> None:
    made = panels(summary())
    assert sorted(set(numbers(made["score-gold"], "value"))) == [-0.35, 0.01, 0.24, 0.31]
    assert 0.71 in numbers(made["refusal"], "value") and 0.31 in numbers(made["refusal"], "benign")
    assert numbers(made["dpo-margins"], "margin")[0] == 0.0


def test_the_gate_region_follows_the_gate() -> None:
    made = panels(summary())["refusal"]
    assert 0.85 in numbers(made, "bottom") and 0.25 in numbers(made, "right")
    without = {key: value for key, value in summary().items() if key != "gate"}
    assert not numbers(panels(without)["refusal"], "bottom")


def test_displacement_says_what_happened() -> None:
    body = summary()
    assert "has become less likely too" in panels(body)["dpo-displacement"].caption
    body["curves"]["dpo"][-1]["chosen_per_token_change"] = 0.1
    assert "has not become less likely" in panels(body)["dpo-displacement"].caption


def test_unknown_stages_and_scores_are_drawn_too() -> None:
    body = bare()
    body["stages"] = [
        {"stage": name, "scores": {"reward": est(0.1), "brevity": rate(0.4)}, "seconds": 1}
        for name in ("kto", "orpo")
    ]
    made = panels(body)
    assert made["score-reward"].spec is not None and made["score-brevity"].spec is not None
    assert "var(--other-1)" in json.dumps(made["score-reward"].spec)


def test_looks_are_drawn_stage_by_stage_and_only_where_somebody_looked() -> None:
    found = [panel for panel in panels(summary()).values() if panel.id.startswith("looks-")]
    assert [panel.id for panel in found] == ["looks-sft", "looks-ppo"]
    assert [panel.title for panel in found] == ["Held-out loss of sft", "Held-out reward of ppo"]
    assert sorted(numbers(found[0], "value")) == sorted(x / step for x in (1.5, 2) for step in (10, 20, 30))
    assert look_panels(read_summary(bare())) == []


def test_a_constraint_shows_its_slack_and_price() -> None:
    body = summary()
    for point, slack in zip(body["curves"]["ppo"], (-0.2, 0.1, 0.3), strict=False):
        point |= {"cost": 0.3 - slack, "slack": slack, "price": 1.5}
    found = panels(body)
    assert numbers(found["ppo-slack"], "slack")[:2] == [-0.2, 0.1]
    assert "in 1 of" in found["ppo-slack"].caption
    assert set(numbers(found["ppo-lambda"], "price")) == {1.5}
    assert "ppo-slack" not in panels(summary())
