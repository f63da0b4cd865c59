"""The real trackers, where they are installed: what they get, and that they get nothing else."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trueward.core.errors import ConfigError
from trueward.core.trackers import TRACKERS, check_trackers

CODE = """
import sys
from pathlib import Path
from trueward.core.metrics import MetricsLog
with MetricsLog(Path(sys.argv[1]), track=[sys.argv[2]]) as log:
    for step in (1, 2):
        log.log({"loss": 1 / step, "rewards/margins": 0.25}, step=step)
    print("said on the terminal")
"""


def _track(name: str, place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two lines to one tracker in a process of its own, because trackers read their surroundings once."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_"))}
    home, run = place / "home", place / "hh" / "sft"
    home.mkdir()
    run.mkdir(parents=True)
    return subprocess.run(
        [sys.executable, "-c", CODE, str(run), name],
        env={**kept, "HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path) -> None:
    done = _track("tensorboard", tmp_path)
    assert done.returncode == 0, done.stderr
    (events,) = (tmp_path / "hh" / "sft" / "tensorboard").iterdir()
    assert b"rewards/margins" in events.read_bytes()


def test_wandb_offline_holds_figures_and_nothing_of_the_machine(tmp_path: Path) -> None:
    done = _track("wandb", tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "hh" / "sft" / "wandb").glob("offline-run-*")
    (file,) = run.glob("run-*.wandb")
    content = file.read_bytes()
    assert b"rewards/margins" in content or (b"rewards" in content and b"margins" in content)
    assert b"hh-sft" in content
    assert b"said on the terminal" not in content
    assert sys.executable.encode() not in content and str(tmp_path).encode() not in content
    assert not list(run.rglob("requirements.txt")) + list(run.rglob("wandb-metadata.json"))


def test_wandb_without_a_login_is_one_sentence(tmp_path: Path) -> None:
    done = _track("wandb", tmp_path)
    assert done.returncode == 1
    assert "ConfigError: tracker 'wandb' does not start" in done.stderr.splitlines()[-1]
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]


def test_trackio_writes_into_its_local_store(tmp_path: Path) -> None:
    done = _track("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    (store,) = (tmp_path / "store").glob("*.db")
    content = b"".join(path.read_bytes() for path in (tmp_path / "store").iterdir() if path.is_file())
    assert store.stem == "trueward"
    assert b"hh-sft" in content and b"rewards/margins" in content


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_what_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is how the import system says that a module is not there.
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"tracker '{name}' is not installed; pip install {name}, or leave"):
        check_trackers([name])
