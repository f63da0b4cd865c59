"""A whole run on tiny data with a tiny random model: what it leaves on disk, also stage by stage."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from rich.console import Console

import trueward.pipeline as pipeline
from tests.pipeline.toy import (
    SMALL,
    call,
    hh_arguments,
    hh_rows,
    refusal,
    tree,
    write_rows,
    write_testbed_model,
)
from trueward.core.files import read_json
from trueward.core.run import open_run
from trueward.models.checkpoint import model_hash
from trueward.registry import Registry
from trueward.reports import read_summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One `trueward run` on HH-form rows."""
    folder = tmp_path_factory.mktemp("hh")
    assert call("run", *hh_arguments(folder)) == 0
    return folder


def _summary(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = read_json(out / "summary.json")
    read_summary(summary)
    return summary


def test_a_run_ends_in_a_report(finished: Path) -> None:
    summary = _summary(finished / "run")
    assert [stage["stage"] for stage in summary["stages"]] == ["base", "sft", "dpo", "ppo"]
    assert summary["kind"] == "real"
    assert [b["name"] for b in summary["reward_model"]["baselines"]] == [
        "chance",
        "longer answer",
        "bag-of-words",
    ]
    assert summary["gate"]["passed"] is False
    assert summary["gate"]["release"] is None
    assert all("win_rate_judge" in s["extra"] for s in summary["stages"][1:])
    assert "<html" in (finished / "run" / "report.html").read_text()
    assert any("baseline" in note for note in summary["notes"])
    for stage in ("data", "sft", "reward", "dpo", "ppo"):
        assert open_run(finished / "run" / stage).manifest["status"] == "done"
        assert (finished / "run" / stage / "recipe.yaml").is_file()


def test_lineage_leads_from_charter_data_and_base_to_the_verdict(finished: Path) -> None:
    lineage = _summary(finished / "run")["lineage"]
    nodes = {node["id"]: node for node in lineage["nodes"]}
    kinds = [node["kind"] for node in nodes.values()]
    assert kinds.count("charter") == kinds.count("dataset") == kinds.count("verdict") == 1
    assert {"run", "model", "evidence"} <= set(kinds)
    labels = {node["label"]: identifier for identifier, node in nodes.items() if node["kind"] == "model"}
    assert {"base: model", "sft", "reward"} <= set(labels)
    parents: dict[str, set[str]] = {}
    for parent, child in lineage["edges"]:
        parents.setdefault(nodes[child]["label"] + "/" + nodes[child]["kind"], set()).add(
            nodes[parent]["label"]
        )
    assert parents["sft/run"] == {"default", "base: model", "feedback"}
    assert parents["sft/model"] == {"sft"}
    assert "base: model/model" not in parents
    assert nodes[lineage["edges"][-1][1]]["kind"] == "verdict"


def test_the_reward_stage_and_the_evaluation_judge_alike(finished: Path) -> None:
    at_its_end = open_run(finished / "run" / "reward").manifest["results"]["held_out"]
    evaluated = _summary(finished / "run")["reward_model"]
    assert evaluated["accuracy"] == pytest.approx(at_its_end["accuracy"])
    assert evaluated["ece"] == pytest.approx(at_its_end["ece"], rel=1e-4)
    assert 0 <= evaluated["invariance"] < 1e-4


def test_resuming_a_finished_run_trains_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("data", "sft", "reward", "dpo", "ppo", "records", "eval")
    before = {name: tree(finished / "run" / name) for name in kept}
    assert call("run", *hh_arguments(finished), "--resume") == 0
    assert "have been measured already" in capsys.readouterr().err
    assert {name: tree(finished / "run" / name) for name in kept} == before


def test_a_run_folder_that_exists_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(finished)
    said = refusal(capsys, "run", *hh_arguments(finished), "seed=4")
    assert "holds a finished data stage already" in said
    assert "--resume" in said
    assert "exists already" in refusal(capsys, "dpo", *hh_arguments(finished), "dpo.objective.beta=0.5")
    assert "other config" in refusal(
        capsys, "dpo", *hh_arguments(finished), "dpo.objective.beta=0.5", "--resume"
    )
    assert "other seed" in refusal(capsys, "run", *hh_arguments(finished), "seed=4", "--resume")
    write_rows(finished / "other.jsonl", hh_rows(30))
    before = tree(finished)
    other = f"data.path={finished / 'other.jsonl'}"
    assert "other inputs" in refusal(capsys, "run", *hh_arguments(finished), other, "--resume")
    assert tree(finished) == before


def test_stages_one_by_one_and_evaluation_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = hh_arguments(tmp_path)
    out = tmp_path / "run"
    assert "run the data stage first" in refusal(capsys, "sft", *arguments)
    assert call("run", *arguments, "stages=[data]") == 0
    assert "run `trueward sft`" in refusal(capsys, "dpo", *arguments)
    assert call("sft", *arguments) == 0
    assert call("dpo", *arguments) == 0
    assert "reward" in refusal(capsys, "ppo", *arguments)
    assert "no finished evaluation" in refusal(capsys, "gate", *arguments)
    assert "no finished evaluation" in refusal(capsys, "report", *arguments)
    assert call("eval", *arguments) == 0
    capsys.readouterr()
    assert "no win rate" in refusal(capsys, "gate", *arguments)
    assert call("gate", *arguments, "release=dpo") == 1
    assert call("report", *arguments) == 0
    assert _summary(out)["gate"]["subject"] == "dpo"
    # A new stage makes a new evaluation; the old evidence stays, and the gate hears the new one only.
    assert call("reward", *arguments) == 0
    assert call("eval", *arguments) == 0
    assert len(list((out / "eval").glob("*/figures.json"))) == 2
    assert len(Registry(out / "records").all("evidence")) == 2 + 3
    assert call("report", *arguments) == 0
    summary = _summary(out)
    assert summary["gate"] is None
    assert any("older than this evaluation" in note for note in summary["notes"])
    assert call("gate", *arguments) == 1
    assert call("report", *arguments) == 0
    assert _summary(out)["gate"]["subject"] == "dpo"
    assert "stage ppo has made no model" in refusal(capsys, "gate", *arguments, "release=ppo")


def test_the_same_as_functions_gives_the_same_models(finished: Path) -> None:
    recipe = pipeline.resolve(*_split(hh_arguments(finished, out="functions")))
    workspace = pipeline.open_workspace(recipe, console=Console(quiet=True))
    for function in (
        pipeline.data,
        pipeline.sft,
        pipeline.reward,
        pipeline.dpo,
        pipeline.eval,
        pipeline.report,
    ):
        function(workspace)
    assert pipeline.gate(workspace) is False
    for stage in ("sft", "reward", "dpo"):
        folders = [finished / out / stage / "model" for out in ("run", "functions")]
        assert model_hash(folders[0]) == model_hash(folders[1])


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[0], arguments[1:]


def test_names_of_commands_are_importable() -> None:
    for name in ("pretrain", "sft", "reward", "dpo", "ppo", "eval", "gate", "report", "run", "data"):
        assert callable(getattr(pipeline, name))
    assert pipeline.eval is pipeline.evaluate


def test_testbed_run(tmp_path: Path) -> None:
    model = write_testbed_model(tmp_path / "base")
    arguments = [
        "quickstart",
        f"out={tmp_path / 'run'}",
        f"model.path={model}",
        *(item for item in SMALL if not item.startswith(("eval.", "data."))),
        "testbed={demonstrations: 30, prompts: 40}",
        "ppo.unbounded={iterations: 1}",
        "data.test_share=0.3",
        "eval.prompts=100",
        "eval.max_new_tokens=6",
    ]
    assert call("run", *arguments) == 0
    summary = _summary(tmp_path / "run")
    assert [stage["stage"] for stage in summary["stages"]] == ["base", "sft", "dpo", "ppo", "ppo_unbounded"]
    assert {"gold", "helpful", "harmless", "honest", "reward"} == set(summary["stages"][1]["scores"])
    assert len(summary["reward_model"]["baselines"]) == 3
    assert summary["curves"]["ppo"][0]["gold"] is not None
    names = {node["label"] for node in summary["lineage"]["nodes"] if node["kind"] == "dataset"}
    assert {"demonstrations", "prompts", "comparisons", "held-out"} == names


def test_too_few_held_out_prompts_are_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_testbed_model(tmp_path / "base")
    said = refusal(
        capsys, "run", "quickstart", f"out={tmp_path / 'run'}", f"model.path={model}", "eval.prompts=10"
    )
    assert "raise eval.prompts" in said
    assert not (tmp_path / "run" / "sft").exists()


def test_adapters_end_to_end(tmp_path: Path) -> None:
    arguments = [*hh_arguments(tmp_path), "model.lora={r: 2}"]
    assert call("run", *arguments) == 0
    for stage in ("sft", "dpo", "ppo"):
        assert (tmp_path / "run" / stage / "adapter" / "adapter_model.safetensors").is_file()
        config = json.loads((tmp_path / "run" / stage / "adapter" / "adapter_config.json").read_text())
        start = tmp_path / "model" if stage == "sft" else tmp_path / "run" / "sft" / "model"
        assert config["base_model_name_or_path"] == str(start)
        assert (tmp_path / "run" / stage / "model" / "model.safetensors").is_file()
    hashes = {model_hash(tmp_path / "run" / stage / "model") for stage in ("sft", "dpo", "ppo")}
    assert len(hashes) == 3
    # The reference of DPO is the SFT model, adapters off: before step 1 the margin is exactly 0.
    first = json.loads((tmp_path / "run" / "dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rewards/margins"] == 0.0


def test_pretraining_makes_a_model_that_the_next_run_takes(tmp_path: Path) -> None:
    texts = [
        {"text": f"It was day {number}, and the rain fell on the roof of the mill. " * 20}
        for number in range(30)
    ]
    write_rows(tmp_path / "text.jsonl", texts)
    data = write_rows(tmp_path / "rows.jsonl", hh_rows())
    arguments = [
        "novels",
        f"out={tmp_path / 'base'}",
        f"pretrain.text={tmp_path / 'text.jsonl'}",
        f"data.path={data}",
        "pretrain.vocab_size=300",
        "pretrain.window_tokens=64",
        "pretrain.shape={hidden_size: 16, num_layers: 1, num_heads: 2, num_kv_heads: 2}",
        "pretrain.shape.intermediate_size=32",
        "pretrain.train={steps: 2, batch_size: 4, lr: 0.001}",
    ]
    assert call("pretrain", *arguments) == 0
    model = tmp_path / "base" / "pretrain" / "model"
    results = open_run(tmp_path / "base" / "pretrain").manifest["results"]
    assert 0 < results["held_out"]["bits_per_character"] < 20
    after = [
        f"out={tmp_path / 'base'}",
        f"data.path={data}",
        f"model.path={model}",
        *SMALL,
        "stages=[data, sft]",
    ]
    assert call("run", "hh", *after) == 0


def test_a_missing_tracker_is_found_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how the import system says that a module is not there.
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = [*hh_arguments(tmp_path), "dpo.train.track=[wandb]"]
    said = refusal(capsys, "run", *arguments)
    assert said == "tracker 'wandb' is not installed; pip install wandb, or leave it out of `track`"
    assert not (tmp_path / "run").exists()
    # A stage that does not use it needs no tracker.
    assert call("run", *arguments, "stages=[data, sft]") == 0
    assert "pip install wandb" in refusal(capsys, "dpo", *arguments)
    assert call("dpo", *arguments, "dpo.train.track=[]") == 0


def test_a_run_reaches_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: reached.append(where))
    # Whether it may is not left to the environment of the tests.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert call("run", *hh_arguments(tmp_path), "stages=[data, sft, eval, report]") == 0
    assert reached == []
