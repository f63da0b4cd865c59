"""The loop: accumulation, order, resume, signals, refusals, steps that are not finite."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainers import toy
from trueward.core.errors import DataError, RunError, StorageError
from trueward.trainers.accumulate import LossSum, accumulate
from trueward.trainers.loop import train
from trueward.trainers.sampling import num_steps, sampler_of
from trueward.trainers.settings import TrainSettings
from trueward.trainers.state import latest_checkpoint


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    result = toy.run(tmp_path, toy.network(), steps=60)
    rows = toy.figures(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    assert (result.step, result.interrupted, result.skipped) == (60, False, 0)
    assert result.metrics_last["loss"] == rows[-1]["loss"]


def test_an_evaluation_is_logged_at_its_own_steps(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.network(), evaluate=lambda _: {"eval/loss": 0.5}, eval_every=3, log_every=5)
    rows = toy.figures(tmp_path)
    assert [row["step"] for row in rows] == [3, 5, 6, 9, 10]
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6, 9, 10]


@pytest.mark.parametrize("fails", [False, True])
def test_steps_train_looks_evaluate_and_the_model_is_left_evaluating(tmp_path: Path, fails: bool) -> None:
    model, seen = toy.network(dropout=0.1), []

    def mode() -> bool:
        assert len({module.training for module in model.modules()}) == 1
        return model.training

    class Watched(toy.Regression):
        def loss(self, model: nn.Module, items: Sequence[toy.Item]) -> LossSum:
            seen.append(("step", mode()))
            return super().loss(model, items)

    def look(model: nn.Module) -> dict[str, float]:
        seen.append(("look", mode()))
        if fails and len(seen) > 4:
            raise RunError("the judge is gone")
        return {}

    changes = {"evaluate": look, "eval_every": 2, "max_tokens_per_forward": 8, "steps": 4}
    if fails:
        with pytest.raises(RunError):
            toy.run(tmp_path, model, objective=Watched(), **changes)
    else:
        toy.run(tmp_path, model, objective=Watched(), **changes)
    assert seen == [("step", True), ("step", True), ("look", False)] * 2
    assert not mode()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_do_not_change_the_gradient(size: int) -> None:
    # Sizes that do not divide 4 evenly show a mean of means.
    def gradient(max_tokens: int) -> tuple[float, list[torch.Tensor]]:
        model = toy.network()
        items = toy.points()[:4]
        got = accumulate(model, toy.Regression(), items, max_tokens=max_tokens, precision="float32", seed=0)
        return got.loss, [p.grad for p in model.parameters() if p.grad is not None]

    loss, grads = gradient(size)
    loss_whole, grads_whole = gradient(4)
    assert loss == pytest.approx(loss_whole, rel=1e-6)
    for grad, whole in zip(grads, grads_whole, strict=True):
        torch.testing.assert_close(grad, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.4])
def test_each_item_is_seen_once_an_epoch(epochs: float) -> None:
    settings = TrainSettings(batch_size=8, epochs=epochs, seed=3)
    sampler = sampler_of(settings, 50)
    seen = [i for step in range(num_steps(settings, 50)) for i in sampler.batch(step)]
    assert len(seen) == round(50 * epochs)
    for first in range(0, len(seen), 50):
        part = seen[first : first + 50]
        assert len(set(part)) == len(part)
    assert sampler.epoch(num_steps(settings, 50)) == epochs


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        sampler = sampler_of(TrainSettings(batch_size=50, steps=2, seed=seed), 50)
        return sampler.batch(number)

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) == epoch(0, 0)


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        TrainSettings(steps=1, epochs=1)


def test_resume_is_bit_equal(tmp_path: Path) -> None:
    # With dropout, so that its seeds are part of what must agree.
    whole, cut, after = (toy.network(dropout=0.5) for _ in range(3))
    toy.run(tmp_path / "whole", whole)
    first = toy.run(tmp_path / "cut", cut, evaluate=toy.interrupt_at(5), eval_every=1)
    assert (first.step, first.interrupted) == (5, True)
    torch.rand(3)  # Another process has drawn other numbers by now.
    second = toy.run(tmp_path / "cut", after, resume=True)
    assert (second.step, second.interrupted, second.resumed_from) == (10, False, 5)
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    model, again = toy.network(), toy.network()
    toy.run(tmp_path, model)
    result = toy.run(tmp_path, again, resume=True)
    assert (result.step, result.interrupted) == (10, False)
    assert toy.equal(toy.weights(model), toy.weights(again))
    assert len(toy.figures(tmp_path)) == 10


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    toy.run(tmp_path, toy.network(), steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"items": toy.points()[:-1]}, "data"),
        ({"lr": 0.06}, "lr"),
        ({"objective": toy.Regression(beta=1.0)}, "objective settings"),
        ({"steps": 11}, "steps"),
    ],
    ids=["data", "lr", "objective", "steps"],
)
def test_resume_refuses_another_run(tmp_path: Path, change: dict[str, object], named: str) -> None:
    toy.run(tmp_path, toy.network())
    with pytest.raises(RunError, match=f"cannot resume: {named} differs"):
        toy.run(tmp_path, toy.network(), resume=True, **change)


def test_resume_refuses_other_frozen_weights(tmp_path: Path) -> None:
    def half_frozen(seed: int) -> torch.nn.Module:
        model = toy.network(seed)
        next(model.children()).requires_grad_(False)
        return model

    toy.run(tmp_path, half_frozen(0))
    with pytest.raises(RunError, match="cannot resume: frozen weights differs"):
        toy.run(tmp_path, half_frozen(1), resume=True)


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.network())
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(RunError, match="holds a checkpoint of step 10 already"):
        toy.run(tmp_path, toy.network())
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_no_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no items to train on"):
        toy.run(tmp_path, toy.network(), items=[])


def test_a_step_that_is_not_finite_is_dumped_and_skipped(tmp_path: Path) -> None:
    items = [*toy.points()[:7], (float("nan"), 0.0)]
    model = toy.network()
    before = toy.weights(model)
    result = toy.run(tmp_path, model, items=items, steps=2, max_skips=2)
    assert result.skipped == 2
    assert toy.equal(before, toy.weights(model)), "a bad step must not move a weight"
    dump = json.loads((tmp_path / "bad_batches" / "step-00000001.json").read_text())
    assert {"x": "nan", "y": "0.0"} in dump["items"]
    assert (dump["step"], dump["loss"], len(dump["parameters_with_bad_gradient"])) == (1, "nan", 4)
    rows = toy.figures(tmp_path)
    assert (rows[-1]["loss"], rows[-1]["skipped"]) == (None, 2)


def test_too_many_bad_steps_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"2 steps had a loss.*expected at most 1.*bad_batches"):
        toy.run(tmp_path, toy.network(), items=[(float("inf"), 0.0)] * 8, max_skips=1)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.network(), save_every=2, keep_checkpoints=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    class FullAfter4:
        def update(self, done: int, figure: str = "") -> None:
            if done == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))

    try:
        with pytest.raises(StorageError, match="free space and resume"):
            train(
                toy.network(),
                objective=toy.Regression(),
                items=toy.points(),
                settings=toy.settings(save_every=2, log_every=100),
                folder=tmp_path,
                bar=FullAfter4(),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 2
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"], (
        "no half-written folder stays"
    )
    whole, after = toy.network(), toy.network()
    toy.run(tmp_path / "whole", whole, log_every=100)
    toy.run(tmp_path, after, resume=True, log_every=100)
    assert toy.equal(toy.weights(whole), toy.weights(after))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.network())
    file = tmp_path / "checkpoints" / "step-00000010" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RunError, match=r"cannot read .*weights\.safetensors.*delete this checkpoint"):
        toy.run(tmp_path, toy.network(), resume=True)


_CHILD = """
import sys, time
from pathlib import Path
from tests.trainers import toy
def slowly(model):
    time.sleep(0.05)
    return {}
result = toy.run(Path(sys.argv[1]), toy.network(), steps=60, save_every=3, evaluate=slowly, eval_every=1)
print(result.step, result.interrupted)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_signalled_process_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True, cwd=root
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline_s = time.monotonic() + 30
    while not (metrics.exists() and metrics.read_text().count("\n") >= 8) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    child.send_signal(number)
    printed, _ = child.communicate(timeout=20)
    done = metrics.read_text().count("\n")
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and 8 <= done < 60
    if number == signal.SIGTERM:
        assert (child.returncode, printed) == (0, f"{done} True\n")
        assert checkpoint.step == done
    else:
        assert child.returncode == -signal.SIGKILL
        assert done - 3 <= checkpoint.step <= done

    whole, after = toy.network(), toy.network()
    toy.run(tmp_path / "whole", whole, steps=60)
    toy.run(tmp_path, after, steps=60, resume=True)
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path)
