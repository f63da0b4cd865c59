"""Which model `release: best` brings before the gate: every policy that was trained, as last evaluated."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal
from trueward.core.files import read_json, write_json
from trueward.core.run import open_run
from trueward.pipeline import open_workspace, resolve
from trueward.pipeline.evaluate import POLICIES
from trueward.pipeline.gate import CANDIDATES, subject_stage
from trueward.pipeline.recipe import Recipe

Capture = pytest.CaptureFixture[str]


def test_every_trained_policy_is_a_candidate_and_can_be_named() -> None:
    assert {"base", "sft", "ppo_unbounded"} == set(POLICIES) - set(CANDIDATES)
    for stage in ("sft", *CANDIDATES, "best"):
        assert Recipe.model_validate({"name": "a", "out": "b", "release": stage}).release == stage


def test_best_looks_at_every_policy_and_fails_closed(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*hh_arguments(tmp_path), "kto.train={steps: 2, batch_size: 8, lr: 0.01}"]
    out = tmp_path / "run"
    assert call("run", *arguments, "stages=[data, sft, reward, kto, eval]") == 0
    # Random weights do not pass, whichever of them is judged.
    assert call("gate", *arguments) == 1
    assert read_json(out / "verdict.json")["subject_stage"] == "kto"

    assert call("dpo", *arguments) == 0
    before = (out / "verdict.json").read_bytes()
    assert "stage dpo has made a model that the newest evaluation has no win rate of" in refusal(
        capsys, "gate", *arguments
    )
    assert (out / "verdict.json").read_bytes() == before

    assert call("eval", *arguments) == 0
    workspace = open_workspace(resolve(arguments[0], arguments[1:]))
    figures = read_json(workspace.evaluation().path / "figures.json")
    rates = {stage: figures["stages"][stage]["win_rate"]["value"] for stage in ("dpo", "kto")}
    assert subject_stage(workspace) == max(rates, key=lambda stage: rates[stage])

    # The other way round, whatever these weights won: the greater win rate decides, not the order of stages.
    for first, second in (("dpo", "kto"), ("kto", "dpo")):
        figures["stages"][first]["win_rate"]["value"] = 0.7
        figures["stages"][second]["win_rate"]["value"] = 0.3
        write_json(workspace.evaluation().path / "figures.json", figures)
        assert subject_stage(workspace) == first


def test_a_policy_that_was_trained_again_is_not_judged_by_the_old_figures(
    tmp_path: Path, capsys: Capture
) -> None:
    arguments = hh_arguments(tmp_path)
    assert call("run", *arguments, "stages=[data, sft, reward, dpo, eval]") == 0
    shutil.rmtree(tmp_path / "run" / "dpo")
    assert call("dpo", *arguments, "dpo.objective.beta=0.5") == 0
    assert open_run(tmp_path / "run" / "dpo").manifest["status"] == "done"
    assert "run eval again" in refusal(capsys, "gate", *arguments)
