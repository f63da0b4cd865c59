"""A run that is stopped, kindly or not, goes on and ends in the very model of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import trueward
from tests.pipeline.toy import call, hh_arguments
from trueward.core.run import open_run
from trueward.models.checkpoint import model_hash

STEPS = 120
ARGUMENTS = [f"sft.train={{steps: {STEPS}, batch_size: 4, lr: 0.001, save_every: 5}}", "stages=[data, sft]"]
PATIENCE_S = 60.0


def _wait_for_checkpoint(folder: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < until_s:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    assert call("run", *hh_arguments(folder, out="whole"), *ARGUMENTS) == 0
    return folder


def _goes_on(uninterrupted: Path, arguments: list[str], out: Path) -> None:
    """Resume, and compare with the run that was never stopped."""
    assert not (out / "sft" / "model").exists()
    assert call("run", *arguments, "--resume") == 0
    assert model_hash(out / "sft" / "model") == model_hash(uninterrupted / "whole" / "sft" / "model")
    rows = [json.loads(line) for line in (out / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_ctrl_c_saves_and_the_run_goes_on(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = uninterrupted / "stopped"
    arguments = [*hh_arguments(uninterrupted, out="stopped"), *ARGUMENTS]

    def press() -> None:
        _wait_for_checkpoint(out / "sft")
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    assert call("run", *arguments) == 130
    presser.join()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped after step ")
    assert "--resume" in said
    assert open_run(out / "sft").manifest["status"] == "interrupted"
    _goes_on(uninterrupted, arguments, out)


@pytest.mark.slow
def test_a_killed_process_loses_at_most_the_steps_since_its_checkpoint(uninterrupted: Path) -> None:
    out = uninterrupted / "killed"
    arguments = [*hh_arguments(uninterrupted, out="killed"), *ARGUMENTS]
    source = str(Path(trueward.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "trueward.cli.main", "run", *arguments],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    _wait_for_checkpoint(out / "sft")
    process.kill()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert open_run(out / "sft").manifest["status"] == "running"
    _goes_on(uninterrupted, arguments, out)


def test_what_a_killed_start_leaves_does_not_block_the_place(tmp_path: Path) -> None:
    arguments = [*hh_arguments(tmp_path), "stages=[data]"]
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / ".manifest.json.abc").write_text("{")
    assert call("run", *arguments) == 0


def test_a_folder_with_other_things_in_it_is_never_emptied(tmp_path: Path) -> None:
    arguments = [*hh_arguments(tmp_path), "stages=[data]"]
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "notes.txt").write_text("mine")
    assert call("run", *arguments) == 2
    assert (tmp_path / "run" / "data" / "notes.txt").read_text() == "mine"
