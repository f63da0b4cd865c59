"""From the results of single runs to the figures of the comparison: ratios pair by pair, then medians.

Nothing is measured here. A run is a `Run`; a pair is a run of Trueward and the run of TRL that followed it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

__all__ = ["Comparison", "Floor", "FLOORS", "Run", "compare", "loss_difference", "table"]


class Floor(NamedTuple):
    """What is asked of Trueward: at least `speed` times TRL's tokens per second, at most `memory` of its
    memory, losses no further apart than `loss`.
    """

    speed: float
    memory: float = 0.5
    loss: float = 1e-4


FLOORS: Mapping[str, Floor] = {
    "sft": Floor(3.0),
    "reward": Floor(3.0),
    "dpo": Floor(4.0),
    "orpo": Floor(4.0, 0.4),
    "kto": Floor(4.0, 0.4),
    "grpo": Floor(3.0, 0.8),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of one side.

    seconds, cpu_seconds: from the start of training to the end of the last step.
    peak_bytes: highest memory of the process while it trained; loaded_bytes: before, with the model loaded.
    model_flops: operations of the products that the tokens need (0 for TRL, whose tokens are not counted);
    matmul_flops_per_s: what the machine reaches in that precision, measured after training.
    tokens: real tokens of sequences that the run drew itself; 0 where they were given.
    """

    seconds: float
    cpu_seconds: float
    losses: tuple[float, ...]
    loaded_bytes: int
    peak_bytes: int
    model_flops: float = 0.0
    matmul_flops_per_s: float = math.inf
    tokens: int = 0

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "Run":
        """A run from what its process wrote."""
        return cls(
            seconds=result["ends_s"][-1],
            cpu_seconds=result["ends_cpu_s"][-1],
            losses=tuple(result["losses"]),
            loaded_bytes=result["loaded_bytes"],
            peak_bytes=result["peak_bytes"],
            model_flops=result["model_flops"],
            matmul_flops_per_s=result["matmul_flops_per_s"],
            tokens=result.get("tokens", 0),
        )

    @property
    def training_bytes(self) -> int:
        """What training took on top of the loaded model."""
        return self.peak_bytes - self.loaded_bytes

    @property
    def utilisation(self) -> float:
        """Share of the machine's matrix peak (MFU) over the whole run."""
        return self.model_flops / self.seconds / self.matmul_flops_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Figures of one method under one setting; ratios are Trueward / TRL for memory, and of tokens per second
    for speed.
    """

    method: str
    setting: str
    pairs: int
    tokens_per_s: float
    peer_tokens_per_s: float
    speed: float
    cpu_speed: float
    training_gib: float
    peer_training_gib: float
    memory: float
    total_memory: float
    loss_difference: float
    utilisation: float
    matmul_gflops_per_s: float

    def meets(self, floor: Floor) -> bool:
        return (
            self.speed >= floor.speed and self.memory <= floor.memory and self.loss_difference <= floor.loss
        )


def loss_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference of the losses of one step.

    Raises:
        ValueError: the runs have not the same number of steps, or none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"runs of {len(ours)} and {len(theirs)} steps cannot be compared")
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def compare(
    method: str, setting: str, ours: Sequence[Run], theirs: Sequence[Run], *, tokens: int
) -> Comparison:
    """Medians over pairs of runs.

    Args:
        setting: the settings of both sides, in words.
        ours, theirs: in the order they ran: pair i is (ours[i], theirs[i]).
        tokens: real tokens of a run, the same for both sides; runs that drew theirs have their own count.

    Raises:
        ValueError: no pairs, or not as many runs of either side.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} runs against {len(theirs)} make no pairs")
    pairs = list(zip(ours, theirs, strict=True))
    gib = float(1 << 30)

    def count(run: Run) -> int:
        return run.tokens or tokens

    return Comparison(
        method=method,
        setting=setting,
        pairs=len(pairs),
        tokens_per_s=median(count(run) / run.seconds for run in ours),
        peer_tokens_per_s=median(count(run) / run.seconds for run in theirs),
        speed=median(b.seconds / a.seconds * (count(a) / count(b)) for a, b in pairs),
        cpu_speed=median(b.cpu_seconds / a.cpu_seconds * (count(a) / count(b)) for a, b in pairs),
        training_gib=median(run.training_bytes / gib for run in ours),
        peer_training_gib=median(run.training_bytes / gib for run in theirs),
        memory=median(a.training_bytes / b.training_bytes for a, b in pairs),
        total_memory=median(a.peak_bytes / b.peak_bytes for a, b in pairs),
        loss_difference=max(loss_difference(a.losses, b.losses) for a, b in pairs),
        utilisation=median(run.utilisation for run in ours),
        matmul_gflops_per_s=median(run.matmul_flops_per_s / 1e9 for run in ours),
    )


_HEAD = (
    "method",
    "setting",
    "pairs",
    "tokens/s",
    "TRL",
    "speed",
    "by CPU time",
    "memory GiB",
    "TRL",
    "ratio",
    "whole process",
    "loss diff",
    "floor",
)


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table, each with its floor and whether it is met."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for row in rows:
        floor = FLOORS[row.method]
        verdict = "met" if row.meets(floor) else "missed"
        lines.append(
            (
                row.method,
                row.setting,
                str(row.pairs),
                f"{row.tokens_per_s:.0f}",
                f"{row.peer_tokens_per_s:.0f}",
                f"{row.speed:.2f}x",
                f"{row.cpu_speed:.2f}x",
                f"{row.training_gib:.2f}",
                f"{row.peer_training_gib:.2f}",
                f"{row.memory:.2f}",
                f"{row.total_memory:.2f}",
                f"{row.loss_difference:.1e}",
                f"{floor.speed:g}x, {floor.memory:g}: {verdict}",
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
