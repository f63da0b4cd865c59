"""PPO with demonstrations and a bound on a cost, from the recipe."""

from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal
from trueward.core.files import read_json, read_jsonl

STAGES = "stages=[data, sft, reward, ppo]"


def test_demonstrations_and_a_cost_come_from_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [*hh_arguments(tmp_path), STAGES, "ppo.train.ptx_coef=1", "ppo.train.ptx_batch_size=4"]
    cost = [f"ppo.cost_model={out / 'reward' / 'model'}", "ppo.train.constraint={threshold: 0.5}"]
    assert call("run", *arguments, *cost) == 0
    rows = list(read_jsonl(out / "ppo" / "metrics.jsonl"))
    assert all(row["ptx_loss"] > 0 for row in rows)
    # The cost model is the reward model here, so one figure is both.
    assert [row["cost"] for row in rows] == [row["reward"] for row in rows]
    parents = read_json(out / "ppo" / "manifest.json")["parents"]
    assert parents["cost_model"] == parents["reward_model"] and parents["demonstrations"] == parents["data"]
    assert "there is no cost_model" in refusal(capsys, "ppo", *arguments, cost[1])
    assert "there is no train.constraint" in refusal(capsys, "ppo", *arguments, cost[0])
