"""The GPU benchmark on a CPU: both sides run, and their losses are the same."""

from pathlib import Path

import pytest
from benchmarks.gpu import main
from benchmarks.gpu_work import Job, batches_of, conversations, tokenizer

from trueward.core.files import read_json

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
    arguments = ["--device", "cpu", "--tiny", "--no-trl", "--steps", "1", "--warmup", "1", "--rounds", "1"]
    assert main([*arguments, "--sequences", "8", "--out", str(tmp_path / "gpu.json")]) == 0
    record = read_json(tmp_path / "gpu.json")
    assert len(record["lines"]) == 4 * 4
    for line in record["lines"]:
        assert line["failed"] == ""
        assert line["loss_difference"] < 1e-5, line
        assert line["step_s"] > 0
        assert line["peak_gib"] is None
    assert "padded loop, recomputing" in capsys.readouterr().out


def test_without_the_device_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda:99"]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err
