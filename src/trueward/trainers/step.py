"""One optimizer step with its safety net: a loss or gradient that is not finite changes no weight, is written
down and counted, and stops the run when it happens too often."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from trueward.core.errors import RunError
from trueward.core.files import write_json
from trueward.models.memory import TrainingMemory
from trueward.trainers.accumulate import StepObjective, accumulate
from trueward.trainers.optim import learning_rate, update
from trueward.trainers.row_adamw import gradient_values, row_gradients
from trueward.trainers.settings import OptimSettings

__all__ = ["StepSettings", "Stepped", "Trained", "check_skips", "take_step"]

T = TypeVar("T")


class StepSettings(OptimSettings, Protocol):
    """The fields that a step reads."""

    @property
    def max_tokens_per_forward(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a step changes, and where it writes when it goes wrong.

    parameters: name -> trained parameter of `model`.
    folder: the run folder.
    memory: where gradients and activations lie, in this step and the next.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: Mapping[str, nn.Parameter]
    folder: Path
    memory: TrainingMemory = field(default_factory=TrainingMemory)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """A step that was taken, or skipped because `loss` or `norm` is not finite. `norm` is that before
    clipping."""

    loss: float
    norm: float
    lr: float
    tokens: int
    means: Mapping[str, float]

    @property
    def skipped(self) -> bool:
        return not (math.isfinite(self.loss) and math.isfinite(self.norm))


def take_step(
    trained: Trained,
    objective: StepObjective[T],
    items: Sequence[T],
    settings: StepSettings,
    *,
    step: int,
    num_steps: int,
    seed: int,
) -> Stepped:
    """Gradient of `items`, clipped, applied, cleared.

    Args:
        step: optimizer step, counted from 0, of `num_steps`; decides the learning rate.
        seed: seed of dropout in this step.
    """
    with row_gradients(trained.model, trained.memory, weight_decay=settings.weight_decay):
        got = accumulate(
            trained.model,
            objective,
            items,
            max_tokens=settings.max_tokens_per_forward,
            precision=settings.precision,
            seed=seed,
        )
    lr = learning_rate(step, num_steps, settings)
    norm = update(
        trained.optimizer, trained.parameters, loss=got.loss, lr=lr, max_norm=settings.max_grad_norm
    )
    stepped = Stepped(loss=got.loss, norm=norm, lr=lr, tokens=got.tokens, means=got.means)
    if stepped.skipped:
        _dump(trained, [objective.describe(item) for item in items], stepped, step=step, seed=seed)
    trained.optimizer.zero_grad(set_to_none=True)
    return stepped


def _dump(
    trained: Trained, items: Sequence[Mapping[str, object]], stepped: Stepped, *, step: int, seed: int
) -> None:
    """Write to `bad_batches/` what the step was made of, so that it can be run again; the gradients are still
    there."""
    bad = [
        n
        for n, p in trained.parameters.items()
        if p.grad is not None and not bool(torch.isfinite(gradient_values(p)).all())
    ]
    write_json(
        trained.folder / "bad_batches" / f"step-{step:08d}.json",
        {
            "schema": "trueward.bad_batch/1",
            "step": step,
            "seed": seed,
            "loss": str(stepped.loss),
            "grad_norm": str(stepped.norm),
            "parameters_with_bad_gradient": bad,
            "items": list(items),
        },
    )


def check_skips(skipped: int, max_skips: int, folder: Path) -> None:
    """Stop a run that skips too often.

    Raises:
        RunError: more than `max_skips` steps were skipped.
    """
    if skipped > max_skips:
        raise RunError(
            f"{skipped} steps had a loss or gradient that is not finite",
            expected=f"at most {max_skips} (max_skips)",
            remedy=f"look at {folder / 'bad_batches'}; a lower lr or a smaller max_grad_norm often helps",
        )
