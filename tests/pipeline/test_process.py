"""The PRM and ORM stages: labelled steps from files, with a tiny random model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, refusal, tree, write_model
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run
from trueward.models.load import load_reward
from trueward.trainers.step_model import load_steps


def step_rows(count: int = 60) -> list[dict[str, Any]]:
    """Problems of a few solutions each, in TRL's stepwise form."""
    rows = []
    for n in range(count):
        right = n % 3 != 0
        steps = [f"take {n % 7}", f"so {n % 7 + 1}" if right else f"so {n % 7 + 2}"]
        rows.append(
            {
                "prompt": f"What is {n % 20} more than one?",
                "completions": [*steps, f"case {n}"],
                "labels": [True, right, right],
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(folder: Path, rows: list[dict[str, Any]] | None = None, out: str = "run") -> list[str]:
    data, model = folder / "rows.jsonl", folder / "model"
    if not data.exists():
        write(data, step_rows() if rows is None else rows)
    if not model.exists():
        write_model(model)
    return [
        "prm",
        f"out={folder / out}",
        f"data.path={data}",
        f"model.path={model}",
        "stages=[data, prm]",
        "data.test_share=0.3",
        "prm.train={steps: 4, batch_size: 8, lr: 0.001, save_every: 2, eval_every: 2}",
        "orm.train={steps: 2, batch_size: 8, lr: 0.001}",
    ]


def results(folder: Path, stage: str = "prm", out: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / out / stage).manifest["results"]
    return found


def test_labelled_steps_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", *arguments(tmp_path)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "PRM on the backbone of base" in said
    assert "each judged at its last token" in said
    assert "PRM: AUC" in said and "a constant's" in said
    held = results(tmp_path)["held_out"]
    assert set(held["judges"]) == {"model", "shorter is right"}
    assert held["judges"]["model"]["auc"]["n"] > 10 and held["problems"] > 2
    assert "PRM:" in held["verdict"]
    rows = list(read_jsonl(tmp_path / "run" / "prm" / "metrics.jsonl"))
    assert len(rows) == 4 and rows[1]["eval/loss"] > 0 and 0 <= rows[3]["eval/step_accuracy"] <= 1
    model = load_steps(tmp_path / "run" / "prm" / "model")
    assert model.step_end == "\n" and model.target == "steps"
    assert load_reward(tmp_path / "run" / "prm" / "model").model.config.num_labels == 1
    sample = next(read_jsonl(tmp_path / "run" / "prm" / "samples.jsonl"))
    assert sample["steps"][0]["text"].startswith("take")
    assert call("doctor", str(tmp_path / "run")) in (0, 1)
    assert "finished data stage" in refusal(capsys, "run", *arguments(tmp_path))


def test_a_killed_run_goes_on_to_the_same_model(tmp_path: Path) -> None:
    assert call("run", *arguments(tmp_path, out="whole")) == 0
    half = arguments(tmp_path, out="cut")
    assert call("run", *half, "stages=[data]") == 0
    # What a kill after step 2 leaves: the checkpoint of that step, and the manifest of a run that goes on.
    assert call("prm", *half) == 0
    prm = tmp_path / "cut" / "prm"
    manifest = read_json(prm / "manifest.json")
    (prm / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if k != "results"} | {"status": "running"})
    )
    newest = max((prm / "checkpoints").iterdir(), key=lambda p: p.name)
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    assert call("prm", *half, "--resume") == 0
    whole, cut = tree(tmp_path / "whole" / "prm" / "model"), tree(prm / "model")
    assert whole["model.safetensors"] == cut["model.safetensors"]
    rows = list(read_jsonl(prm / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_an_orm_learns_from_labelled_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"What is {n % 20} + 1?", "completion": f"take {n}\n\nso {n + 1}", "label": n % 3 != 0}
        for n in range(60)
    ]
    given = arguments(tmp_path, rows)
    assert call("run", *given, "stages=[data, orm]") == 0
    assert "ORM: AUC" in capsys.readouterr().err
    assert results(tmp_path, "orm")["held_out"]["judges"]["model"]["auc"]["n"] < 60
    assert load_steps(tmp_path / "run" / "orm" / "model").target == "outcome"
    sample = next(read_jsonl(tmp_path / "run" / "orm" / "samples.jsonl"))
    assert sample["steps"][0]["label"] is None and len(sample["steps"]) == 2


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        (None, ["stages=[data, orm]"], "the training split holds no solution with a known outcome"),
        (
            [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(40)],
            ["steps.labels=files"],
            "no solution with steps with labels",
        ),
        (
            [{**row, "labels": [True] * 3} for row in step_rows()],
            [],
            "all labels of the training split are alike",
        ),
        (None, ["data.max_tokens=49", "steps.max_dropped=0"], "rows are dropped"),
        (
            [{**row, "labels": [1, *(int(x) for x in row["labels"][1:])]} for row in step_rows()],
            [],
            "set prm.objective.neutral_is_right=false",
        ),
        (None, ["prm.objective.method=clases"], "prm.objective.method"),
        (None, ["prm.objective={estimation: soft, method: classes}"], "'soft' needs method 'binary'"),
        (None, ["prm.objective.estimation=soft"], "has no soft labels"),
        (None, ["prm.start=sft"], "stage sft has made no model"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]] | None,
    overrides: list[str],
    said: str,
) -> None:
    assert said in refusal(capsys, "run", *arguments(tmp_path, rows), *overrides)


def test_repeats_and_rows_without_labels_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*step_rows(), *step_rows(5)]
    assert call("run", *arguments(tmp_path, rows)) == 0
    said = " ".join(capsys.readouterr().err.split())
    counted = [int(word) for word in re.findall(r"and (\d+) repeats are left out", said)]
    assert sum(counted) == 5
