"""The GPU benchmark on a CPU: both sides run, and their losses are the same."""

from pathlib import Path

import pytest
from benchmarks.gpu import main
from benchmarks.gpu_work import Job, batches_of, conversations, tokenizer
from benchmarks.performance_page import sections
from benchmarks.results import read_lines

JOB = Job(method="dpo", size="tiny", device="cpu", precision="float32", sequences=8, steps=1, warmup=0)


def test_conversations_are_as_long_as_people_write_them() -> None:
    (batch,) = batches_of(JOB._replace(sequences=200), tokenizer())
    prompts = [len(group.prompt_ids) for group in batch]
    answers = [len(c.ids) for group in batch for c in group.completions]
    # The template adds four tokens to a prompt, the end of the turn one to an answer.
    assert 20 <= min(prompts) < 30
    assert 250 < max(prompts) <= 305
    assert 21 <= min(answers) < 25
    assert 180 < max(answers) <= 201
    assert conversations(JOB) == conversations(JOB)


@pytest.mark.slow
def test_both_sides_run_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--tiny", "--trl", "--steps", "1", "--warmup", "1", "--rounds", "1"]
    assert main([*arguments, "--sequences", "8", "--results", str(tmp_path / "gpu.json")]) == 0
    lines = read_lines(tmp_path / "gpu.json")
    assert len(lines) == 4 * 5
    for line in lines:
        assert line.part == "gpu"
        assert line.values["failed"] == ""
        assert line.values["loss_difference"] < 1e-5, line
        assert line.values["step_s"] > 0
        assert line.values["peak_gib"] is None
    assert "padded loop, recomputing" in sections(lines)["gpu"]
    assert "padded loop, recomputing" in capsys.readouterr().out


def test_without_the_device_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda:99"]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err
