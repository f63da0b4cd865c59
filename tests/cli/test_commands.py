"""The command line itself: fast help, exit codes, recipes, dry runs, and what is said about a wrong key."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import trueward
from tests.pipeline.toy import call, hh_arguments, refusal, tree

ROOT = Path(trueward.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def test_help_and_recipes_import_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['trueward', *{arguments}]\n"
        "from trueward.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {{'torch', 'transformers', 'trueward.pipeline'}} & set(sys.modules)\n"
    )
    for arguments in (["--help"], ["recipes", "ls"], ["recipes", "show", "hh"], ["--version"]):
        done = _python(code.format(arguments=arguments))
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['trueward', '--help']\nfrom trueward.cli.main import main\nmain()"
    best_s = float("inf")
    # Processor time, as the machine may be shared; the best of three, as the first may read the disk.
    for _ in range(3):
        before = os.times()
        _python(code)
        after = os.times()
        best_s = min(
            best_s,
            after.children_user + after.children_system - before.children_user - before.children_system,
        )
    assert best_s < 0.5


def test_recipes_ls_show_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipes", "ls") == 0
    assert {"quickstart", "hh", "novels"} <= {
        line.split()[0] for line in capsys.readouterr().out.splitlines()
    }
    assert call("recipes", "show", "hh") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["name"] == "hh"
    assert call("recipes", "cp", "hh", str(tmp_path / "mine.yaml")) == 0
    assert (tmp_path / "mine.yaml").read_text() == shown
    capsys.readouterr()
    before = tree(tmp_path)
    assert "exists already" in refusal(capsys, "recipes", "cp", "hh", str(tmp_path / "mine.yaml"))
    assert tree(tmp_path) == before
    assert "did you mean 'quickstart'" in refusal(capsys, "recipes", "show", "quikstart")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "hh", "sft.train.lrr=1"], "unknown key 'sft.train.lrr'; did you mean 'lr'?"),
        (["run", "hh", "dpoo.x=1"], "unknown key 'dpoo'; did you mean 'dpo'?"),
        (["run", "hh", "sft.train.lr=-1"], "sft.train.lr"),
        (["run", "hh", "sft.train.lr"], "not of the form key.path=value"),
        (["run", "hhh"], "there is no recipe 'hhh'; did you mean 'hh'?"),
        (["run", "hh", "stages=[gate, eval]"], "in this order, each once"),
        (["run", "hh", "stages=[sft, sft]"], "in this order, each once"),
        (["run", "hh", "stages=[sfft]"], "stages"),
        (["run", "hh", "sft.train.track=[tensorbored]"], "sft.train.track"),
        (["run", "hh", "release=best-of-all"], "release"),
        (["run", "hh", "name=No Spaces"], "name"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_a_wrong_recipe_is_one_sentence(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *arguments)
    assert not tree(tmp_path)


def test_an_unknown_option_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "hh", "--dry") == 2
    assert "No such option" in capsys.readouterr().err


def test_dry_run_prints_recipe_and_plan_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = hh_arguments(tmp_path)
    before = tree(tmp_path)
    assert call("run", *arguments, "--dry-run") == 0
    out = capsys.readouterr().out
    resolved, _, plan = out.partition("Plan:")
    assert yaml.safe_load(resolved)["sft"]["train"]["steps"] == 3
    # 60 rows, of which 42 or so train: the split is by prompt, so the plan can only say about how many.
    for words in (
        "60 rows",
        "SFT takes 3 steps of 4 demonstrations",
        "2 iterations of 4 prompts",
        "GiB of memory",
    ):
        assert words in plan, plan
    assert tree(tmp_path) == before


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo", "eval", "gate", "report", "pretrain"])
def test_every_stage_has_a_dry_run(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*hh_arguments(tmp_path), f"pretrain.text={tmp_path / 'rows.jsonl'}"]
    before = tree(tmp_path)
    assert call(stage, *arguments, "--dry-run") == 0
    assert "Plan:" in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_quickstart_plans_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started_s = time.monotonic()
    code = call(
        "quickstart", "--out", str(tmp_path / "q"), "--seed", "3", "--stages", "data,sft", "--dry-run"
    )
    captured = capsys.readouterr()
    # Without the base model in the package there is nothing to plan with: the sentence says how to make it.
    assert code == 0 or "trueward testbed build" in captured.err
    assert time.monotonic() - started_s < 30
    assert not (tmp_path / "q").exists()
