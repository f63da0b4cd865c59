"""From items to a gradient: sums over micro-batches under one global denominator.

    gradient = (sum over the counted elements of the whole step) / (their number), whatever the micro-batches
Not here: which items, what the loss is, what becomes of the gradient.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from trueward.core.errors import RunError
from trueward.core.seed import derive_seed
from trueward.models.processor import model_products
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision

__all__ = [
    "Accumulated",
    "LossSum",
    "PreparedObjective",
    "ScheduledObjective",
    "StepObjective",
    "accumulate",
    "forward_precision",
]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class LossSum:
    """What an objective says of one micro-batch: sums, never means.

    loss_sum: scalar with gradient, summed over the counted elements (tokens, pairs).
    tokens: real tokens of the forward pass.
    sums: metric name -> (sum, count); the step's figure is sum over micro-batches / count over micro-batches.
    """

    loss_sum: Tensor
    tokens: int
    sums: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)


class StepObjective(Protocol[T]):
    """What the loop asks of a method.

    `settings` (JSON values) and `describe` (JSON values: ids and tokens of one item) decide the run's
    identity: a checkpoint is only taken up again with the same ones.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, object]: ...
    def describe(self, item: T) -> Mapping[str, object]: ...
    def count(self, items: Sequence[T]) -> float:
        """The denominator: counted elements of all `items` together, > 0."""
        ...

    def micro_batches(self, items: Sequence[T], max_tokens: int) -> list[list[T]]: ...
    def loss(self, model: nn.Module, items: Sequence[T]) -> LossSum: ...


@runtime_checkable
class PreparedObjective(Protocol[T_contra]):
    """An objective that looks at all items of a step, without gradient, before the first micro-batch."""

    def prepare(self, model: nn.Module, items: Sequence[T_contra], max_tokens: int) -> None: ...


@runtime_checkable
class ScheduledObjective(Protocol):
    """An objective that changes with the step; a function of the step alone, so that resuming needs no
    state."""

    def at(self, step: int, num_steps: int) -> None: ...


class Accumulated(NamedTuple):
    """A step before its update; the gradient lies in the parameters."""

    loss: float
    tokens: int
    means: dict[str, float]


def forward_precision(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix products over float32 weights, or nothing."""
    if precision != "bfloat16":
        return nullcontext()
    # A forward casts each weight once. Kept until its end, the casts of all weights would only take memory,
    # and those made without gradient would be read by forwards that need one.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def accumulate(
    model: nn.Module,
    objective: StepObjective[T],
    items: Sequence[T],
    *,
    max_tokens: int,
    precision: Precision,
    seed: int,
) -> Accumulated:
    """Fill the gradients of one optimizer step.

    Args:
        max_tokens: real tokens per forward pass.
        seed: seed of dropout in this step.

    Raises:
        RunError: the items hold nothing to count.
    """
    denominator = objective.count(items)
    if not denominator > 0:
        raise RunError(f"{objective.name}: the items of a step hold nothing to train on", value=denominator)
    device = device_of(model)
    # Gathered on the device; read once at the end, so that no micro-batch waits for the one before.
    loss_sums: list[Tensor] = []
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, float] = {}
    tokens = 0
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        model_products(model, autocast=precision == "bfloat16"),
    ):
        torch.manual_seed(derive_seed(seed, "dropout"))
        if isinstance(objective, PreparedObjective):
            with torch.no_grad(), forward_precision(precision, device):
                objective.prepare(model, items, max_tokens)
        for part in objective.micro_batches(items, max_tokens):
            with forward_precision(precision, device):
                out = objective.loss(model, part)
            (out.loss_sum / denominator).backward()  # type: ignore[no-untyped-call]
            loss_sums.append(out.loss_sum.detach())
            tokens += out.tokens
            for name, (total, count) in out.sums.items():
                sums.setdefault(name, []).append(total.detach())
                counts[name] = counts.get(name, 0.0) + count
    # One read for all figures: each by itself would wait for the device.
    exact = [torch.stack(values).to(device, torch.float64).sum() for values in (loss_sums, *sums.values())]
    loss_sum, *totals = torch.stack(exact).tolist()
    means = {name: total / counts[name] for name, total in zip(sums, totals, strict=True) if counts[name]}
    return Accumulated(loss_sum / denominator, tokens, means)
