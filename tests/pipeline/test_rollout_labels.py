"""Labels by rollouts as part of a run: testbed and GSM8K, a killed run, reading them again, refusals."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, refusal, tree, write_model, write_testbed_model
from trueward.core.files import read_json
from trueward.core.run import open_run
from trueward.data.dataset import open_dataset
from trueward.data.records import StepLabels
from trueward.registry import Registry

TINY = (
    "steps.rollouts={solutions: 4, completions: 3, max_new_tokens: 12}",
    "steps.train_questions=20",
    "steps.test_questions=8",
    "prm.train={steps: 2, batch_size: 8, lr: 0.001}",
    "orm.train={steps: 2, batch_size: 8, lr: 0.001}",
)


@pytest.fixture
def lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A verifier that a random model satisfies now and then: the bytes of the answer add up to an odd sum."""
    (tmp_path / "lenient_judge.py").write_text(
        "def judge(completion, answer, prompt):\n    return float(sum(completion.encode()) % 2)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{__import__('os').environ['PYTHONPATH']}")
    return "questions.verifiers=[{name: function, function: 'lenient_judge:judge'}]"


def arguments(folder: Path, verifier: str, out: str = "run") -> list[str]:
    model = folder / "base" if (folder / "base").exists() else write_testbed_model(folder / "base")
    return [
        "prm",
        f"out={folder / out}",
        f"model.path={model}",
        "stages=[data, prm]",
        "data.source=testbed",
        "data.max_tokens=160",
        "testbed={demonstrations: 30, prompts: 300}",
        "eval.prompts=100",
        verifier,
        *TINY,
    ]


def counts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / "labels").manifest["results"]["counts"]
    return found


def test_the_testbed_end_to_end(tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, run = arguments(tmp_path, lenient), tmp_path / "run"
    assert call("run", *given, "stages=[data, prm, orm]") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "labels by rollouts of base, train: 80 solutions" in said
    assert "PRM: AUC" in said and "ORM: AUC" in said
    assert counts(run)["train"]["solutions"] == 80 and counts(run)["train"]["errors"] == 0
    version = open_dataset(run / "data" / "step-labels")
    (source,) = version.manifest["sources"]
    assert {"policy", "completions", "temperature", "seed", "verifiers", "step_end"} <= set(source)
    assert source["completions"] == 3 and version.manifest["splits"] == {
        "train": version.num_records,
        "test": 0,
    }
    records = [r for r in version.records() if isinstance(r, StepLabels)]
    assert all(r.soft_labels is not None and r.meta.annotator.startswith("rollouts of") for r in records)
    # Lineage: the model comes from the labels, and those from the policy and the prompts.
    lineage = Registry(run / "records").lineage(open_run(run / "prm").manifest["results"]["records"]["model"])
    labels = {node["label"] for node in lineage.to_json()["nodes"]}
    assert any("step-labels" in label for label in labels), labels
    assert call("doctor", str(run)) in (0, 1)


def test_labels_are_made_once(tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, run = arguments(tmp_path, lenient), tmp_path / "run"
    assert call("run", *given) == 0
    before = tree(run / "labels") | tree(run / "data")
    assert call("orm", *given) == 0
    assert tree(run / "labels") | tree(run / "data") == before
    capsys.readouterr()
    said = refusal(capsys, "prm", *given, "steps.rollouts.completions=2", "--resume")
    assert "labels was made with other config" in said


def test_a_killed_run_goes_on_to_the_same_labels(tmp_path: Path, lenient: str) -> None:
    whole, cut = (arguments(tmp_path, lenient, out=out) for out in ("whole", "cut"))
    assert call("run", *whole) == 0
    assert call("run", *cut) == 0
    labels = tmp_path / "cut" / "labels"
    manifest = read_json(labels / "manifest.json")
    (labels / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted", "results": {}}))
    (labels / "parts" / "train-0001.json").unlink()
    for name in ("step-labels", "step-labels-held-out"):
        for file in sorted((tmp_path / "cut" / "data" / name).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    assert call("prm", *cut, "--resume") == 0
    for name in ("step-labels", "step-labels-held-out"):
        first, again = (open_dataset(tmp_path / out / "data" / name) for out in ("whole", "cut"))
        assert first.hash == again.hash


def test_no_held_out_question_is_labelled_for_training(tmp_path: Path, lenient: str) -> None:
    assert call("run", *arguments(tmp_path, lenient)) == 0
    asked = {
        name: {
            r.prompt
            for r in open_dataset(tmp_path / "run" / "data" / name).records()
            if isinstance(r, StepLabels)
        }
        for name in ("step-labels", "step-labels-held-out")
    }
    assert asked["step-labels"] and asked["step-labels-held-out"]
    assert not asked["step-labels"] & asked["step-labels-held-out"]


def test_gsm8k_end_to_end(tmp_path: Path, shared: Path, lenient: str) -> None:
    with gzip.open(shared / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for _, line in zip(range(200), stream, strict=False)]
    rows = [row for row in rows if len(row["question"]) < 250][:60]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [
        "prm",
        "stages=[data, prm]",
        f"out={tmp_path / 'run'}",
        f"model.path={write_model(tmp_path / 'model')}",
        f"data.path={data}",
        "data.test_share=0.3",
        lenient,
        *TINY,
    ]
    assert call("run", *given) == 0
    assert counts(tmp_path / "run")["train"]["solutions"] == 80


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["steps.labels=files"], "the testbed has no files with labelled steps"),
        (["questions.verifiers=[{name: mathz}]"], "unknown verifier 'mathz'"),
        (
            ["questions.verifiers=[{name: format, pattern: 'never so'}]"],
            "all labels of the training split are alike",
        ),
        (["steps.policy=grpo"], "stage grpo has made no model"),
        (["steps.rollouts.max_new_tokens=159"], "no prompt can be used"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert said in refusal(capsys, "run", *arguments(tmp_path, lenient), *overrides)
