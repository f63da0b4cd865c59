"""The loop that SFT, reward modelling, DPO and pretraining share.

    for each step: its items -> loss sums of micro-batches -> gradient / global count -> update -> log
Around it: checkpoints, resume, signals, steps that are not finite, evaluation. PPO has its own loop over the
same parts.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from trueward.core.errors import DataError, RunError
from trueward.core.hashing import canonical_json, hash_lines
from trueward.core.metrics import MetricsLog
from trueward.core.seed import derive_seed
from trueward.models.inner import backbone_of, evaluating, unwrap
from trueward.models.last_layer import last_layer
from trueward.trainers.accumulate import ScheduledObjective, StepObjective
from trueward.trainers.diagnosis import warnings_of
from trueward.trainers.optim import build_optimizer, trainable
from trueward.trainers.sampling import num_steps, sampler_of
from trueward.trainers.settings import TrainSettings
from trueward.trainers.signals import stop_on_signal
from trueward.trainers.state import (
    Checkpoint,
    check_identity,
    fingerprint,
    latest_checkpoint,
    restore,
    save_checkpoint,
    trim_rows,
)
from trueward.trainers.step import Stepped, Trained, check_skips, take_step

__all__ = [
    "FREE_SETTINGS",
    "Evaluate",
    "Progress",
    "TrainResult",
    "checkpoint_activations",
    "json_figures",
    "open_checkpoint",
    "resume_hint",
    "train",
]

T = TypeVar("T")
Evaluate = Callable[[nn.Module], Mapping[str, float]]
# A run may be resumed with other values of these: they change what is shown, kept or held in memory at once.
FREE_SETTINGS = {
    "save_every",
    "keep_checkpoints",
    "eval_every",
    "log_every",
    "track",
    "max_tokens_per_forward",
    "max_skips",
    "tokens_every",
}


class Progress(Protocol):
    """The part of `core.progress.Bar` that trainers use."""

    def update(self, done: int, figure: str = "") -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended.

    step: steps done, those before a resume included.
    metrics_last: the last line of metrics.jsonl.
    interrupted: a signal ended it; a checkpoint of `step` is on disk.
    skipped: steps skipped because loss or gradient was not finite.
    seconds: wall-clock time of this call.
    resumed_from: step of the checkpoint it went on from, or None.
    warnings: sentences for the user.
    stopped: why it ended before its last step, in words; empty if it did not, or was interrupted.
    """

    step: int
    metrics_last: Mapping[str, float]
    interrupted: bool
    skipped: int
    seconds: float
    resumed_from: int | None = None
    warnings: tuple[str, ...] = ()
    stopped: str = ""


@dataclass(slots=True)
class _State:
    """What changes from step to step beside the weights. last: figures of the last step."""

    step: int = 0
    skipped: int = 0
    last: dict[str, float] = field(default_factory=dict)
    resumed_from: int | None = None

    def take(self, got: Stepped, *, epoch: float, seconds: float) -> None:
        """One step further, with its figures."""
        self.step, self.skipped = self.step + 1, self.skipped + got.skipped
        self.last = {
            "loss": got.loss,
            **got.means,
            "grad_norm": got.norm,
            "lr": got.lr,
            "epoch": epoch,
            "tokens": got.tokens,
            "tokens_per_s": got.tokens / seconds,
            "step_s": seconds,
            "skipped": self.skipped,
        }


def resume_hint(result_step: int, folder: Path) -> str:
    """The sentence for a user whose run was interrupted."""
    return (
        f"stopped after step {result_step} and saved in {folder}; run the same command with --resume to go on"
    )


def train(
    model: nn.Module,
    *,
    objective: StepObjective[T],
    items: Sequence[T],
    settings: TrainSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train `model` in place on `items`.

    Args:
        model: trainable parameters must be float32; left in eval mode.
        objective: the method.
        items: what `objective` takes; the order does not matter but is part of the run's identity.
        settings: length, optimizer, saving.
        folder: run folder; gets metrics.jsonl, checkpoints/ and, on trouble, bad_batches/.
        bar: shows how far and the loss.
        evaluate: declared metric name -> figure, called in eval mode every `eval_every` steps and at the end;
            those steps are logged whatever `log_every` says.
        resume: go on from the newest checkpoint in `folder`; without one, start at step 0.

    Returns:
        TrainResult; `interrupted` after SIGINT or SIGTERM, `warnings` holds the diagnosis.

    Raises:
        DataError: no items.
        RunError: the folder holds checkpoints and `resume` is False, a checkpoint of other data or settings,
            or more than `max_skips` steps that were not finite.
        StorageError: a checkpoint could not be written; earlier ones are untouched.
    """
    if not items:
        raise DataError(
            f"{objective.name}: there are no items to train on", remedy="check the filters and the split"
        )
    started_s = time.monotonic()
    total, sampler = num_steps(settings, len(items)), sampler_of(settings, len(items))
    optimizer = build_optimizer(model, settings)
    trained = Trained(model=model, optimizer=optimizer, parameters=trainable(model), folder=folder)
    identity = _identity(model, objective, items, settings)
    state = _begin(trained, identity, resume=resume)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    with stop_on_signal() as stop, MetricsLog(folder, settings.track) as log, _training(model):
        while state.step < total and not stop:
            step_s = time.monotonic()
            batch = [items[i] for i in sampler.batch(state.step)]
            if isinstance(objective, ScheduledObjective):
                objective.at(state.step, total)
            seed = derive_seed(settings.seed, "step", state.step)
            got = take_step(trained, objective, batch, settings, step=state.step, num_steps=total, seed=seed)
            state.take(got, epoch=sampler.epoch(state.step + 1), seconds=time.monotonic() - step_s)
            check_skips(state.skipped, settings.max_skips, folder)
            looked: Mapping[str, float] = {}
            if evaluate and _due(state.step, settings.eval_every, total):
                with evaluating(model):
                    looked = evaluate(model)
            state.last |= looked
            if looked or _due(state.step, settings.log_every, total):
                log.log(state.last, step=state.step)
            if bar is not None:
                bar.update(state.step, f"loss {got.loss:.4g}")
            if state.step % settings.save_every == 0:
                _save(trained, identity, state, settings)
        _save(trained, identity, state, settings)
    return TrainResult(
        step=state.step,
        metrics_last=state.last,
        interrupted=state.step < total,
        skipped=state.skipped,
        seconds=time.monotonic() - started_s,
        resumed_from=state.resumed_from,
        warnings=warnings_of(folder, settings),
    )


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode for a whole run: set in every step, the walk through the modules takes the time of a
    layer on a GPU."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def _begin(trained: Trained, identity: Mapping[str, object], *, resume: bool) -> _State:
    checkpoint = open_checkpoint(trained.folder, identity, resume=resume)
    if checkpoint is None:
        return _State()
    restore(checkpoint, trained.model, trained.optimizer)
    return _State(
        step=checkpoint.step,
        skipped=int(checkpoint.state["skipped"]),
        last=dict(checkpoint.state["metrics"]),
        resumed_from=checkpoint.step,
    )


def _save(trained: Trained, identity: Mapping[str, object], state: _State, settings: TrainSettings) -> None:
    figures = {"identity": identity, "skipped": state.skipped, "metrics": json_figures(state.last)}
    save_checkpoint(
        trained.folder,
        step=state.step,
        model=trained.model,
        optimizer=trained.optimizer,
        state=figures,
        keep=settings.keep_checkpoints,
    )


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


def _identity(
    model: nn.Module, objective: StepObjective[T], items: Sequence[T], settings: TrainSettings
) -> dict[str, object]:
    return {
        "objective": objective.name,
        "objective settings": dict(objective.settings),
        "data": hash_lines(canonical_json(objective.describe(item)) for item in items),
        "frozen weights": fingerprint(model, frozen_only=True),
        "trained parameters": len(trainable(model)),
        **{key: value for key, value in settings.model_dump(mode="json").items() if key not in FREE_SETTINGS},
    }


def open_checkpoint(folder: Path, identity: Mapping[str, object], *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, with metrics.jsonl cut back to it; None starts at step 0.

    Raises:
        RunError: there are checkpoints and `resume` is False, or they belong to another run.
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None and not resume:
        raise RunError(
            f"{folder} holds a checkpoint of step {checkpoint.step} already",
            remedy="resume it, or choose another folder",
        )
    if checkpoint is not None:
        check_identity(checkpoint, identity)
    folder.mkdir(parents=True, exist_ok=True)
    trim_rows(folder / "metrics.jsonl", checkpoint.step if checkpoint else 0)
    return checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Compute activations twice to hold fewer; those of the last layer, which the backward needs first, once.

    Raises:
        RunError: the model cannot.
    """
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise RunError(f"{type(model).__name__} cannot checkpoint activations", remedy="set it to false")
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    last = last_layer(backbone_of(unwrap(model)))
    if isinstance(last, GradientCheckpointingLayer):
        last.gradient_checkpointing = False


def json_figures(values: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON values: what is not finite becomes null."""
    return {name: (value if math.isfinite(value) else None) for name, value in values.items()}
