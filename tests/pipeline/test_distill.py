"""The distillation stage: the testbed and files, resume, and teachers that are refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.pipeline.toy import call, hh_arguments, refusal, write_model, write_testbed_model
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run
from trueward.models.checkpoint import save_causal

Capture = pytest.CaptureFixture[str]
SMALL = ("distill.train={steps: 2, batch_size: 4, lr: 0.001}", "distill.objective.max_new_tokens=6")


def arguments(folder: Path) -> list[str]:
    teacher = folder / "teacher"
    if not teacher.exists():
        write_model(teacher, seed=3)
    return [*hh_arguments(folder), *SMALL, f"distill.teacher={teacher}", "stages=[data, sft, distill]"]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / "distill").manifest["results"]
    return found


def test_the_testbed_end_to_end(tmp_path: Path, capsys: Capture) -> None:
    base = write_testbed_model(tmp_path / "base")
    asked = [
        "distill",
        f"out={tmp_path / 'run'}",
        f"model.path={base}",
        f"distill.teacher={base}",
        "data.source=testbed",
        "data.max_tokens=160",
        "testbed={demonstrations: 30, prompts: 60}",
        "sft.train={steps: 2, batch_size: 4, lr: 0.001}",
        "eval={prompts: 100, max_new_tokens: 6}",
        *SMALL,
    ]
    assert call("run", *asked) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "distillation, held out: KL(student || teacher)" in said
    held = results(tmp_path / "run")["held_out"]
    assert held["score"]["name"] == "gold"
    # The interval of the gap, or why there is none: one of the two.
    assert ("gap_closed" in held) != ("no_gap" in held)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert [stage["stage"] for stage in summary["stages"]] == ["base", "sft", "distill"]
    assert summary["stages"][2]["win_against"] == "sft"


def test_files_with_and_without_a_reward_model(tmp_path: Path, capsys: Capture) -> None:
    asked = arguments(tmp_path)
    assert call("run", *asked) == 0
    assert "no reward model, so nothing but the KL is measured" in " ".join(capsys.readouterr().err.split())
    held = results(tmp_path / "run")["held_out"]
    assert set(held) == {"kl"}
    assert held["kl"]["before"]["n"] == held["kl"]["after"]["n"] > 5
    rows = list(read_jsonl(tmp_path / "run" / "distill" / "metrics.jsonl"))
    assert [row["distill/on_policy"] for row in rows] == [1, 1]
    assert call("distill", *asked, "--resume") == 0
    lora = ["model.lora={r: 2}", f"out={tmp_path / 'other'}", "stages=[data, sft, reward, distill]"]
    assert call("run", *asked, *lora) == 0
    assert results(tmp_path / "other")["held_out"]["score"]["name"] == "reward"


def test_the_teacher_is_among_the_records(tmp_path: Path) -> None:
    assert call("run", *arguments(tmp_path)) == 0
    names = [
        read_json(file)["body"].get("name", "") for file in (tmp_path / "run" / "records").rglob("*.json")
    ]
    assert any(name.startswith("teacher: ") for name in names)


def test_no_teacher_is_refused(tmp_path: Path, capsys: Capture) -> None:
    asked = [*hh_arguments(tmp_path), *SMALL, "stages=[data, sft, distill]"]
    assert "distill.teacher is missing" in refusal(capsys, "run", *asked)


def test_a_teacher_of_other_words_is_refused(tmp_path: Path, capsys: Capture) -> None:
    other = write_testbed_model(tmp_path / "other-words")
    said = refusal(capsys, "run", *arguments(tmp_path), f"distill.teacher={other}")
    assert "has another vocabulary than the student" in said
    assert "words differ, such as" in said
    assert not (tmp_path / "run" / "distill").exists()


def test_a_teacher_of_another_template_is_refused(tmp_path: Path, capsys: Capture) -> None:
    folder = write_model(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template += "\n"
    save_causal(AutoModelForCausalLM.from_pretrained(folder), tokenizer, tmp_path / "odd", "Odd template.")
    said = refusal(capsys, "run", *arguments(tmp_path), f"distill.teacher={tmp_path / 'odd'}")
    assert "has another chat template than the student" in said


def test_the_plan_names_the_stage(tmp_path: Path, capsys: Capture) -> None:
    assert call("distill", *arguments(tmp_path), "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "distillation takes 2 steps of 4 answers" in out
    assert "100% of them the student's own" in out
