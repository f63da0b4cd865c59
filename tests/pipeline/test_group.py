"""The GRPO stage: testbed, GSM8K and columns of a user's own, with a tiny random model."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.toy import call, refusal, write_model, write_rows, write_testbed_model
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run
from trueward.data.records import Demonstration, Message, Meta, Prompt
from trueward.pipeline.answers import reference_of_record
from trueward.pipeline.group import mean_gain, mean_score

TINY = (
    "sft.train={steps: 2, batch_size: 4, lr: 0.001}",
    "grpo.train.iterations=3",
    "grpo.train.prompts_per_iteration=4",
    "grpo.train.completions_per_prompt=3",
    "grpo.train.max_new_tokens=6",
    "grpo.train.lr=0.001",
    "grpo.verifiers=[{name: maths}, {name: length, max_words: 3, weight: 0.1}]",
)


def testbed_arguments(folder: Path) -> list[str]:
    model = write_testbed_model(folder / "base") if not (folder / "base").exists() else folder / "base"
    return [
        "rlvr",
        f"out={folder / 'run'}",
        f"model.path={model}",
        "data.source=testbed",
        "data.max_tokens=160",
        "data.test_share=0.3",
        "testbed={demonstrations: 30, prompts: 100}",
        "eval.prompts=100",
        *TINY,
    ]


testbed_arguments.__test__ = False  # type: ignore[attr-defined]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / "run" / "grpo").manifest["results"]
    return found


def test_the_testbed_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = testbed_arguments(tmp_path)
    assert call("run", *arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "GRPO:" in said
    assert "grpo, held out, greedy:" in said
    held = results(tmp_path)["held_out"]
    assert held["sampled"]["gain"]["n"] == held["greedy"]["before"]["n"] > 3
    assert held["sampled"]["errors"] == 0
    rows = list(read_jsonl(tmp_path / "run" / "grpo" / "metrics.jsonl"))
    assert len(rows) == 3
    assert all(row["gold"] is not None and row["verifier/error_share"] == 0 for row in rows)
    (sample,) = read_jsonl(tmp_path / "run" / "grpo" / "group_samples.jsonl")
    assert sample["prompt_text"]
    assert "maths:" in sample["completions"][0]["detail"]
    assert call("grpo", *arguments, "--resume") == 0
    assert "finished grpo stage" in refusal(capsys, "run", *arguments, "stages=[grpo]")


def test_grpo_is_evaluated_and_reported_with_the_others(tmp_path: Path) -> None:
    arguments = [*testbed_arguments(tmp_path), "eval.max_new_tokens=6"]
    assert call("run", *arguments, "stages=[data, sft, grpo, eval, report]") == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert [stage["stage"] for stage in summary["stages"]] == ["base", "sft", "grpo"]
    assert summary["stages"][2]["win_against"] == "sft"


def test_gsm8k_end_to_end(tmp_path: Path, shared: Path) -> None:
    with gzip.open(shared / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for _, line in zip(range(400), stream, strict=False)]
        rows = [row for row in rows if len(row["question"] + row["answer"]) < 350][:60]
    arguments = [
        "rlvr",
        f"out={tmp_path / 'run'}",
        f"model.path={write_model(tmp_path / 'model')}",
        f"data.path={write_rows(tmp_path / 'rows.jsonl', rows)}",
        "data.max_tokens=500",
        "data.test_share=0.3",
        *TINY,
        "model.lora={r: 2}",
    ]
    assert call("run", *arguments) == 0
    assert (tmp_path / "run" / "grpo" / "model" / "model.safetensors").is_file()
    held = results(tmp_path)["held_out"]
    assert held["greedy"]["errors"] == 0
    assert 3 < held["greedy"]["gain"]["n"] < 30


def test_where_the_reference_is() -> None:
    asked = (Message("user", "2 + 3 ?"),)
    shown = Demonstration(id="d", messages=(*asked, Message("assistant", "#### 5")))
    assert reference_of_record(shown, None) == "#### 5"
    meta = Meta(extra={"reward_model": {"ground_truth": "5", "style": True}, "n": 7, "tests": ["x"]})
    prompt = Prompt(id="p", messages=asked, meta=meta)
    found = ["reward_model.ground_truth", "n", "reward_model.style", "tests", "nothing", "n.deeper", None]
    assert [reference_of_record(prompt, column) for column in found] == ["5", "7", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["grpo.answer=solution"], "no record of the training split says what is right"),
        (["grpo.verifiers=[{name: mathz}]"], "unknown verifier 'mathz'; did you mean 'maths'?"),
        (["grpo.verifiers=[]"], "grpo.verifiers"),
        (["grpo.train.method=grop"], "unknown method 'grop'; did you mean 'grpo'?"),
        (["grpo.train.completions_per_prompt=1"], "in a group of one nothing can be compared"),
        (
            ["grpo.verifiers=[{name: function, function: 'nowhere:judge'}]"],
            "the function 'nowhere:judge' cannot be used",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)]
    arguments = [
        "rlvr",
        f"out={tmp_path / 'run'}",
        f"model.path={write_model(tmp_path / 'model')}",
        f"data.path={write_rows(tmp_path / 'rows.jsonl', rows)}",
        "data.test_share=0.3",
        *TINY,
    ]
    if "answer" in overrides[0] or "nowhere" in overrides[0]:
        assert call("run", *arguments, "stages=[data, sft]") == 0
        capsys.readouterr()
        assert said in refusal(capsys, "grpo", *arguments, *overrides)
        assert not (tmp_path / "run" / "grpo" / "metrics.jsonl").exists()
    else:
        assert said in refusal(capsys, "run", *arguments, *overrides)
        assert not (tmp_path / "run").exists()


def test_no_success_is_not_certain_failure() -> None:
    """0 of 200: Wilson's upper end is 1.96^2 / (200 + 1.96^2) = 0.0188; resampling zeros would say 0."""
    assert mean_score(np.zeros(200)).high == pytest.approx(0.0188, abs=1e-4)
    assert mean_score(np.ones(200)).low == pytest.approx(1 - 0.0188, abs=1e-4)
    halves = mean_score(np.array([0.5, 0.5, 1.5]))
    assert halves.value == pytest.approx(5 / 6) and halves.high == 1.5
    unchanged = mean_gain(np.zeros(200), np.zeros(200))
    assert unchanged.value == 0 and unchanged.high == -unchanged.low == pytest.approx(0.0188, abs=1e-4)
    better = mean_gain(np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]))
    assert better.value == 0.75 and better.low >= 0
