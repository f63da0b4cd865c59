"""Metrics are declared once, written line by line, and never under a name that nobody declared."""

import math
import sys
from pathlib import Path

import pytest

from trueward.core.errors import ConfigError, RunError
from trueward.core.files import read_jsonl
from trueward.core.metrics import METRICS, MetricsLog, declare
from trueward.core.trackers import TRACKERS


def test_lines_hold_step_time_and_figures(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log({"loss": 0.5, "tokens": 12}, step=1)
        log.log({"loss": 0.25}, step=2)
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["tokens"]) == (1, 0.5, 12)
    assert second.keys() == {"step", "time_s", "loss"}
    assert 0 <= first["time_s"] <= second["time_s"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_what_is_not_finite_becomes_null(tmp_path: Path, value: float) -> None:
    with MetricsLog(tmp_path) as log:
        log.log({"loss": value, "lr": 1.0}, step=1)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["loss"] is None
    assert row["lr"] == 1.0


def test_an_undeclared_name_raises_and_nothing_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log, pytest.raises(RunError) as error:
        log.log({"loss": 1.0, "grad_nrm": 1.0}, step=1)
    assert str(error.value) == "metric 'grad_nrm' was never declared; did you mean 'grad_norm'?"
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_name_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueward.core.metrics.METRICS", dict(METRICS))
    assert declare("made_up", "s", "a test") == "made_up"
    assert declare("made_up", "s", "a test") == "made_up"
    with pytest.raises(RunError, match="metric 'made_up' is declared twice"):
        declare("made_up", "ms", "a test")


def test_every_metric_has_a_unit_and_a_meaning() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit
        assert len(metric.meaning) > 10


def test_a_tracker_that_is_unknown_or_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker, got 'wandbb'; did you mean 'wandb'\?"):
        MetricsLog(tmp_path, track=["wandbb"])
    # None in sys.modules is how the import system says that a module is not there.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match="tracker 'wandb' is not installed; pip install wandb, or leave it out"
    ):
        MetricsLog(tmp_path, track=["wandb"])


def test_a_tracker_gets_finite_figures_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        def __init__(self, folder: Path) -> None:
            self.rows: list[tuple[dict[str, float], int]] = []
            self.closed = False
            recorders.append(self)

        def log(self, values: dict[str, float], step: int) -> None:
            self.rows.append((values, step))

        def close(self) -> None:
            self.closed = True

    recorders: list[Recorder] = []
    # A tracker goes by the name of its package, and this one is always installed.
    monkeypatch.setitem(TRACKERS, "json", Recorder)
    with MetricsLog(tmp_path, track=["json"]) as log:
        log.log({"loss": math.nan, "lr": 0.5}, step=7)
    (recorder,) = recorders
    assert recorder.rows == [({"lr": 0.5}, 7)]
    assert recorder.closed
