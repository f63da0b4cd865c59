"""A two-layer regression, so that the loop is tested without a language model. Items are (x, y) pairs."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueward.core.files import read_jsonl
from trueward.trainers.accumulate import LossSum
from trueward.trainers.loop import TrainResult, train
from trueward.trainers.settings import TrainSettings

Item = tuple[float, float]


class Regression:
    """Squared error, mean over items; a micro-batch holds `max_tokens` items."""

    name = "regression"

    def __init__(self, **settings: object) -> None:
        self.settings: Mapping[str, object] = settings

    def describe(self, item: Item) -> Mapping[str, object]:
        return {"x": str(item[0]), "y": str(item[1])}

    def count(self, items: Sequence[Item]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
        return [list(items[i : i + max_tokens]) for i in range(0, len(items), max_tokens)]

    def loss(self, model: nn.Module, items: Sequence[Item]) -> LossSum:
        x, y = torch.tensor([i[0] for i in items]), torch.tensor([i[1] for i in items])
        errors = (model(x.unsqueeze(1)).squeeze(1) - y).square()
        return LossSum(errors.sum(), len(items), {"accuracy": ((errors < 0.01).float().sum(), len(items))})


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def points(n: int = 50) -> list[Item]:
    return [(i / n, (i / n) ** 2) for i in range(n)]


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"lr": 0.05, "batch_size": 8, "steps": 10, "max_tokens_per_forward": 3, **changes})


def run(folder: Path, model: nn.Module, **changes: Any) -> TrainResult:
    """Train on the points; `changes` go to the settings, but for those of `train` itself."""
    own = {key: changes.pop(key) for key in ("resume", "evaluate", "items", "objective") if key in changes}
    return train(
        model,
        **{"objective": Regression(), "items": points(), **own},
        settings=settings(**changes),
        folder=folder,
    )


def interrupt_at(step: int) -> Callable[[nn.Module], Mapping[str, float]]:
    """An evaluation (to be called every step) that presses Ctrl-C at its `step`-th call."""
    calls = 0

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    return evaluate


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Bit-equal."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def figures(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the columns that are times."""
    timed = {"time_s", "step_s", "tokens_per_s", "time/rollout_s", "time/update_s"}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(folder / "metrics.jsonl")]
