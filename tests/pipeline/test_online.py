"""Online DPO: rounds with a fresh reference, resume in the middle of one, the testbed's true reward."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, write_testbed_model
from trueward.core.files import read_jsonl
from trueward.core.run import open_run
from trueward.models.checkpoint import model_hash

Capture = pytest.CaptureFixture[str]
STEPS = 12
ONLINE = (
    "dpo.online={rounds: 2, prompts: 12, completions: 3, max_new_tokens: 6}",
    f"dpo.train={{steps: {STEPS}, batch_size: 4, lr: 0.001, save_every: 2, eval_every: {STEPS}}}",
)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder).manifest["results"]
    return found


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run up to the reward model."""
    folder = tmp_path_factory.mktemp("online")
    assert call("run", *hh_arguments(folder), "stages=[data, sft, reward]") == 0
    return folder


@pytest.fixture(scope="module")
def whole(scored: Path) -> Path:
    """A run with both rounds."""
    out = scored / "whole"
    shutil.copytree(scored / "run", out)
    assert call("dpo", *hh_arguments(scored), f"out={out}", *ONLINE) == 0
    return out


def test_rounds(whole: Path) -> None:
    rounds = [open_run(whole / "dpo" / "rounds" / str(n)) for n in (1, 2)]
    ids = []
    for run in rounds:
        rows = list(read_jsonl(run.path / "metrics.jsonl"))
        # The reference of a round is the policy at its start: the first step finds no difference.
        assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert "eval/accuracy" in rows[-1]
        drawn = run.manifest["results"]["drawn"]
        assert drawn["pairs"] + drawn["ties"] == drawn["prompts"] == 12
        assert drawn["completions"] == 36
        assert "gold" not in drawn
        pairs = list(read_jsonl(run.path / "pairs.jsonl"))
        assert len(pairs) == drawn["pairs"]
        assert all(row["gap"] > 0 for row in pairs)
        ids += [row["id"] for row in pairs]
    # All prompts of a pass come once before any comes again.
    assert len(set(ids)) == len(ids)
    assert rounds[1].manifest["parents"]["model"] == model_hash(rounds[0].model)
    assert model_hash(whole / "dpo" / "model") == model_hash(rounds[1].model) != model_hash(rounds[0].model)
    steps = [row["step"] for row in read_jsonl(whole / "dpo" / "metrics.jsonl")]
    assert steps == list(range(1, 2 * STEPS + 1))
    found = results(whole / "dpo")
    assert found["steps"] == 2 * STEPS
    assert [drawn["prompts"] for drawn in found["rounds"]] == [12, 12]


def test_a_round_that_was_stopped_goes_on(scored: Path, whole: Path) -> None:
    out = scored / "stopped"
    shutil.copytree(scored / "run", out)
    arguments = [*hh_arguments(scored), f"out={out}", *ONLINE]
    second = out / "dpo" / "rounds" / "2"

    def press() -> None:
        until_s = time.monotonic() + 60
        while not list(second.glob("checkpoints/step-*")) and time.monotonic() < until_s:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    assert call("dpo", *arguments) == 130
    presser.join()
    assert open_run(second).manifest["status"] == "interrupted"
    assert not (out / "dpo" / "model").exists()
    first, drawn = out / "dpo" / "rounds" / "1" / "manifest.json", second / "drawn.json"
    before = first.read_bytes(), drawn.read_bytes()
    assert call("dpo", *arguments, "--resume") == 0
    assert (first.read_bytes(), drawn.read_bytes()) == before
    assert model_hash(out / "dpo" / "model") == model_hash(whole / "dpo" / "model")


def test_the_testbed_reports_the_true_reward(tmp_path: Path, capsys: Capture) -> None:
    arguments = [
        *hh_arguments(tmp_path),
        f"model.path={write_testbed_model(tmp_path / 'base')}",
        "data.source=testbed",
        "testbed={demonstrations: 30, prompts: 60}",
        "eval.prompts=100",
        *ONLINE,
        "model.lora={r: 2}",
    ]
    assert call("run", *arguments, "stages=[data, sft, reward]") == 0
    capsys.readouterr()
    assert "dpo.online.completions" in refusal(capsys, "dpo", *arguments, "dpo.online.completions=1")
    assert call("dpo", *arguments) == 0
    assert "gold" in capsys.readouterr().err
    for drawn in results(tmp_path / "run" / "dpo")["rounds"]:
        assert -3 < drawn["gold"]["value"] < 1
        assert 0 <= drawn["gold_agreement"]["value"] <= 1


def test_without_a_reward_model(scored: Path, capsys: Capture) -> None:
    out = scored / "unscored"
    shutil.copytree(scored / "run", out, ignore=shutil.ignore_patterns("reward"))
    assert "stage reward has made no model" in refusal(
        capsys, "dpo", *hh_arguments(scored), f"out={out}", *ONLINE
    )
