"""`trueward doctor` on folders: healthy and sick, runs and stages, words and JSON, and bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, refusal, tree
from trueward.core.files import write_json, write_jsonl
from trueward.core.run import create_run

FINE = {"loss": 0.6, "grad_norm": 1.0, "lr": 1e-5, "skipped": 0.0}
SICK = {**FINE, "lr": 0.0}


def stage(path: Path, row: dict[str, Any] = FINE, num_rows: int = 12, **results: Any) -> Path:
    """A stage's folder as a trainer leaves it; without `results`, as one that was killed does."""
    run = create_run(path, stage=path.name, config={"section": {"kl_budget": 2.0}}, parents={}, seed=0)
    write_jsonl(path / "metrics.jsonl", [{"step": i, "time_s": 0.1, **row} for i in range(1, num_rows + 1)])
    if results:
        run.finish(results=results)
    return path


def test_a_healthy_run_says_so_and_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path / "sft", stopped="")
    before = tree(tmp_path)
    assert call("doctor", str(tmp_path / "sft")) == 0
    out = capsys.readouterr().out
    assert "nothing looks wrong (6 rules checked)" in out
    assert "not checked, as their metrics are absent: overfitting" in out and "negative KL" in out
    assert tree(tmp_path) == before, "it reads, and writes nothing"


def test_a_whole_run_is_examined_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path / "sft", stopped="")
    stage(tmp_path / "dpo" / "rounds" / "dpo", SICK, stopped="")
    (tmp_path / "data").mkdir()
    assert call("doctor", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "1. learning rate of zero, step 12" in out
    for part in ("seen: the learning rate never rose", "why it matters: float32", "try: raise lr"):
        assert part in out
    assert out.rstrip().endswith("something looks wrong in: dpo")


def test_stages_come_in_the_order_in_which_they_were_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, started in (("sft", "2026-01-01T00:00:00"), ("dpo", "2026-01-01T00:00:09")):
        run = stage(tmp_path / name, stopped="")
        manifest = json.loads((run / "manifest.json").read_text())
        write_json(run / "manifest.json", {**manifest, "started": started})
    assert call("doctor", str(tmp_path), "--json") == 0
    assert [one["stage"] for one in json.loads(capsys.readouterr().out)["stages"]] == ["sft", "dpo"]


def test_json_has_findings_reasons_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path / "dpo", SICK)
    assert call("doctor", str(tmp_path / "dpo"), "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    (one,) = shown["stages"]
    assert (shown["schema"], one["stage"], one["rows"], one["healthy"]) == (
        "trueward.doctor/1",
        "dpo",
        12,
        False,
    )
    (finding,) = one["findings"]
    assert finding.keys() == {"rule", "step", "seen", "why", "remedy"}
    assert "learning rate of zero" in one["checked"]
    assert one["unchecked"]["chosen falls"].startswith("no metric logps/chosen_per_token_change")
    assert "it goes on, or it was killed" in one["notes"][0]


def test_the_bounds_come_from_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path / "ppo", {"objective/kl_k3": 3.0}, stopped="KL budget")
    assert call("doctor", str(tmp_path / "ppo")) == 1
    out = capsys.readouterr().out
    assert "above the budget of 2" in out and "it stopped early: KL budget" in out


def test_a_run_that_died_of_bad_steps_is_sick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stage(tmp_path / "sft")
    write_json(folder / "bad_batches" / "step-00000012.json", {})
    assert call("doctor", str(folder)) == 1
    assert "1 steps were not finite, the first after step 12" in capsys.readouterr().out


def test_a_trainers_own_folder_needs_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "mine" / "metrics.jsonl", [])
    assert call("doctor", str(tmp_path / "mine")) == 0
    out = capsys.readouterr().out
    assert "no step has been logged yet" in out and "nothing could be checked" in out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no folder" in refusal(capsys, "doctor", str(tmp_path / "nowhere"))
    assert "has metrics" in refusal(capsys, "doctor", str(tmp_path))
    file = tmp_path / "sft" / "metrics.jsonl"
    for broken, said in (
        ("{\n", "is not JSON"),
        ("[1]\n", "no line of metrics"),
        ('{"loss": 1}\n', "no line of metrics"),
        ('{"step": 1, "loss": "\\u001b[31mx"}\n', "no number for loss"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text(broken)
        assert said in refusal(capsys, "doctor", str(tmp_path))


def test_it_loads_no_torch(tmp_path: Path) -> None:
    stage(tmp_path / "sft", stopped="")
    code = (
        f"import sys; sys.argv = ['trueward', 'doctor', {str(tmp_path)!r}]\n"
        "from trueward.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
