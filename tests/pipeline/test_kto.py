"""The KTO stage: labels as they are, pairs split into labels, the testbed; what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, write_rows, write_testbed_model
from trueward.core.files import read_jsonl
from trueward.core.run import open_run
from trueward.data.records import Comparison, Label, Message, Ranking, Record, Text
from trueward.pipeline import open_workspace, resolve
from trueward.pipeline.kto import labels_of
from trueward.pipeline.report import build_summary

Capture = pytest.CaptureFixture[str]
SMALL = ("kto.train={steps: 2, batch_size: 8, lr: 0.001}", "stages=[data, sft, kto]")
ASKED = (Message("user", "how ?"),)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / "kto").manifest["results"]
    return found


def label_rows(*, alike: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Say {n} in words.",
            "completion": f"It is {n}." if n % 3 else "No.",
            "label": alike or n % 3 > 0,
        }
        for n in range(60)
    ]


def test_labels_of_records() -> None:
    pair: dict[str, Any] = {"prompt": ASKED, "chosen": "a", "rejected": "b"}
    records: list[Record] = [
        Label(id="l", prompt=ASKED, completion="x", label=False),
        Comparison(id="c", **pair),
        Comparison(id="turned", **pair, soft_label=0.2),
        Comparison(id="tie", **pair, soft_label=0.5),
        Ranking(id="r", prompt=ASKED, completions=("1", "2", "3")),
        Text(id="t", text="plain"),
    ]
    found = labels_of(records)
    assert [(label.id, label.completion, label.label) for label in found.labels] == [
        ("l", "x", False),
        ("c/chosen", "a", True),
        ("c/rejected", "b", False),
        ("turned/chosen", "b", True),
        ("turned/rejected", "a", False),
        ("r/chosen", "1", True),
        ("r/rejected", "3", False),
    ]
    assert (found.compared, found.ties, found.others, found.desirable) == (3, 1, 1, 3)


def test_labels_end_to_end(tmp_path: Path, capsys: Capture) -> None:
    write_rows(tmp_path / "rows.jsonl", label_rows())
    arguments = [*hh_arguments(tmp_path), *SMALL, "kto.train.eval_every=1"]
    assert call("run", *arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    counts = results(tmp_path / "run")["labels"]
    assert 0 < counts["desirable"] < counts["all"]
    alike = f"{counts['desirable']} desirable and {counts['all'] - counts['desirable']} undesirable answers"
    assert f"KTO: {alike} in the training split" in said
    assert "from comparisons" not in said
    assert "KTO: held-out accuracy" in said
    rows = list(read_jsonl(tmp_path / "run" / "kto" / "metrics.jsonl"))
    assert len(rows) == 2
    assert all("eval/accuracy" in row and "objective/baseline" in row for row in rows)
    assert call("kto", *arguments, "--resume") == 0


def test_pairs_are_split_and_the_stage_is_reported(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*hh_arguments(tmp_path), *SMALL, "stages=[data, sft, kto, eval]"]
    assert call("run", *arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    counts = results(tmp_path / "run")["labels"]
    assert counts["all"] == 2 * counts["desirable"]
    assert f"{counts['all']} of them from comparisons: the better answer desirable" in said
    summary = build_summary(open_workspace(resolve(arguments[0], arguments[1:])))
    assert [stage["stage"] for stage in summary["stages"]] == ["base", "sft", "kto"]
    assert summary["stages"][2]["seconds"] > 0


def test_the_testbed(tmp_path: Path) -> None:
    amounts = ["data.source=testbed", "testbed={demonstrations: 30, prompts: 60}", "eval.prompts=100"]
    model = f"model.path={write_testbed_model(tmp_path / 'base')}"
    assert call("run", *hh_arguments(tmp_path), model, *amounts, *SMALL, "kto.objective.method=bco") == 0
    assert "BCO on" in (tmp_path / "run" / "kto" / "model" / "README.md").read_text()
    assert results(tmp_path / "run")["labels"]["desirable"] > 3


def test_labels_all_alike_are_refused(tmp_path: Path, capsys: Capture) -> None:
    write_rows(tmp_path / "rows.jsonl", label_rows(alike=True))
    arguments = [*hh_arguments(tmp_path), *SMALL]
    said = refusal(capsys, "run", *arguments)
    assert "the training split has" in said
    assert "labels, all of them alike" in said
    assert "use sft" in said
    assert not (tmp_path / "run" / "kto" / "metrics.jsonl").exists()


def test_the_plan_names_the_stage(tmp_path: Path, capsys: Capture) -> None:
    write_rows(tmp_path / "rows.jsonl", label_rows())
    assert call("kto", *hh_arguments(tmp_path), *SMALL, "--dry-run") == 0
    assert "KTO takes 2 steps of 8 labelled answers" in " ".join(capsys.readouterr().out.split())
