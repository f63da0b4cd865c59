"""Where figures go beside `metrics.jsonl`: TensorBoard, W&B and trackio, only when installed and asked for.

A tracker gets the figures and the run's name. What W&B and trackio would add of their own (terminal output,
source, host, packages, load of the machine) is switched off, as is W&B's reporting of errors.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trueward.core.errors import ConfigError, nearest

__all__ = ["TRACKERS", "Tracker", "check_trackers"]

_PROJECT = "trueward"


class Tracker(Protocol):
    """Something beside `metrics.jsonl` that takes figures."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def _run_name(folder: Path) -> str:
    """Name of a stage's folder behind that of its run, for example `hh-sft`."""
    return f"{folder.resolve().parent.name}-{folder.name}".removeprefix("-")


def _start(package: str, start: Callable[[], Any], errors: tuple[type[Exception], ...], remedy: str) -> Any:
    try:
        return start()
    except errors as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"tracker {package!r} does not start: {said}", remedy=remedy) from error


class _TensorBoard:
    """Writes event files to `<folder>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _RunTracker:
    """W&B and trackio: both give a run with `log` and `finish`."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(folder: Path) -> Tracker:
    """Writes to `<folder>/wandb`, and sends to W&B unless WANDB_MODE=offline."""
    # Read when W&B is imported; whoever sets it has the last word.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = importlib.import_module("wandb")
    settings = wandb.Settings(
        console="off",
        quiet=True,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    run = _start(
        "wandb",
        lambda: wandb.init(
            project=_PROJECT, name=_run_name(folder), dir=str(folder), settings=settings, reinit="create_new"
        ),
        (wandb.Error,),
        "log in with `wandb login`, set WANDB_MODE=offline, or leave it out of `track`",
    )
    return _RunTracker(run)


def _trackio(folder: Path) -> Tracker:
    """Writes to trackio's local store (TRACKIO_DIR); `trackio show` opens it."""
    trackio: Any = importlib.import_module("trackio")
    run = _start(
        "trackio",
        lambda: trackio.init(
            project=_PROJECT, name=_run_name(folder), embed=False, auto_log_gpu=False, auto_log_cpu=False
        ),
        (ValueError, OSError),
        "check the TRACKIO_ variables of the environment, or leave it out of `track`",
    )
    return _RunTracker(run)


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def check_trackers(names: Iterable[str]) -> None:
    """Refuse what cannot be used. Nothing is imported and nothing started.

    Raises:
        ConfigError: an unknown or not installed tracker.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError("unknown tracker", value=name, remedy=nearest(name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracker {name!r} is not installed",
                remedy=f"pip install {name}, or leave it out of `track`",
            )
