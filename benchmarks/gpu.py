"""Trueward on one NVIDIA GPU: step time, utilisation and memory of SFT, reward model, DPO and a GRPO update.

    python -m benchmarks.gpu --results benchmarks/performance.json
Beside it a plain padded loop, with and without recomputed activations, and TRL where it is installed. Random
weights, the testbed's words: no network, no data. `--device cpu --tiny` runs the same code as a test.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console

from benchmarks import gpu_ours, gpu_plain
from benchmarks.gpu_work import METHODS, SIZES, Job, Measured, matmul_flops_per_s, measure
from benchmarks.process import run_module
from benchmarks.results import record
from trueward.core.errors import RunError, TruewardError

__all__ = ["Figures", "main", "parse", "table"]

SEQUENCES: Mapping[str, int] = {"tiny": 8, "135M": 64, "1.5B": 64}
"""Answers of an optimizer step, by size of the model."""


SIDES = (
    "Trueward",
    "Trueward, recomputing",
    "padded loop",
    "padded loop in parts",
    "padded loop, recomputing",
    "TRL",
    "TRL in parts",
    "TRL, recomputing",
)
PART = 16
"""Answers of one forward of a peer that takes a step in parts; the padded loop sorts them by length."""


class Side(NamedTuple):
    """One way to train. `checkpointing`: recompute activations in the backward. `per_forward`: answers of one
    forward; 0: all."""

    name: str
    checkpointing: bool
    run: Callable[[Job], Measured]
    per_forward: int = 0


class Figures(NamedTuple):
    """Medians of one side under one job, over its rounds; `failed` says why there are none.

    speed: how many times its step takes as long as Trueward's.
    """

    method: str
    size: str
    side: str
    rounds: int
    step_s: float | None
    speed: float | None
    utilisation: float | None
    peak_gib: float | None
    loss_difference: float | None
    failed: str


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers in float32: a test")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["135M", "1.5B"])
    parser.add_argument("--sequences", type=int, help="answers of an optimizer step (default: by size)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side: A B A B")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--trl", nargs="*", choices=list(METHODS), default=list(METHODS), help="methods to run TRL with"
    )
    parser.add_argument("--results", type=Path, help="file of measured lines, written after every run")
    asked = parser.parse_args(arguments)
    if asked.tiny:
        asked.sizes = ["tiny"]
    return asked


def _trl(job: Job) -> Measured:
    """TRL in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="trueward-gpu-") as name:
        try:
            got = run_module("benchmarks.gpu_trl", {**job._asdict(), "work": name}, Path(name))
        except RunError as error:
            return Measured((), (), (), None, f"failed: {str(error)[-300:]}")
    return Measured(
        tuple(got["step_s"]), tuple(got["losses"]), tuple(got["flops"]), got["peak_bytes"], got["failed"]
    )


def sides(asked: argparse.Namespace, method: str) -> list[Side]:
    """Who runs a method, Trueward first."""
    found = [
        Side("Trueward", False, lambda job: measure(job, gpu_ours.start)),
        Side("Trueward, recomputing", True, lambda job: measure(job, gpu_ours.start)),
        Side("padded loop", False, lambda job: measure(job, gpu_plain.start)),
        Side("padded loop in parts", False, lambda job: measure(job, gpu_plain.start), PART),
        Side("padded loop, recomputing", True, lambda job: measure(job, gpu_plain.start)),
    ]
    # Its GRPO samples inside the step, which is another measurement.
    if method in asked.trl and method != "grpo" and find_spec("trl") is not None:
        found += [Side("TRL", False, _trl), Side("TRL in parts", False, _trl, PART)]
        found += [Side("TRL, recomputing", True, _trl)]
    return [side for side in found if side.name in asked.sides]


def lines_of(job: Job, runs: Mapping[str, Sequence[Measured]], peak_flops_per_s: float) -> list[Figures]:
    """Figures of every side; losses are compared with the first side's, step by step of the first round."""
    first = next(iter(runs.values()))
    base_s = [second for run in first for second in run.step_s]
    lines = []
    for name, of_side in runs.items():
        seconds = [second for run in of_side for second in run.step_s]
        failed = next((run.failed for run in of_side if run.failed), "")
        if not seconds:
            lines.append(
                Figures(job.method, job.size, name, len(of_side), None, None, None, None, None, failed)
            )
            continue
        shares = [
            f / s / peak_flops_per_s for run in of_side for f, s in zip(run.flops, run.step_s, strict=True)
        ]
        peaks = [run.peak_bytes / 2**30 for run in of_side if run.peak_bytes is not None]
        pairs = list(zip(first[0].losses, of_side[0].losses, strict=False))
        lines.append(
            Figures(
                job.method,
                job.size,
                name,
                len(of_side),
                median(seconds),
                median(seconds) / median(base_s) if base_s else None,
                median(shares),
                max(peaks) if peaks else None,
                max(abs(a - b) for a, b in pairs) if pairs else None,
                failed,
            )
        )
    return lines


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(lines: Sequence[Figures]) -> str:
    """Markdown."""
    head = ("model", "method", "side", "step ms", "Trueward is faster by", "MFU", "peak GiB", "loss diff")
    rows = [head, ("---",) * len(head)]
    for line in lines:
        rows.append(
            (
                line.size,
                line.method,
                line.side,
                _cell(line.step_s and 1e3 * line.step_s, ".1f") if not line.failed else line.failed,
                _cell(line.speed, ".2f"),
                _cell(line.utilisation, ".1%"),
                _cell(line.peak_gib, ".2f"),
                _cell(line.loss_difference, ".1e"),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _keep(file: Path, job: Job, lines: Sequence[Figures], peak_flops_per_s: float) -> None:
    """Write what is known of a job so far."""
    device = torch.device(job.device)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for line in lines:
        values = {
            **line._asdict(),
            "sequences": job.sequences,
            "steps": job.steps,
            "precision": job.precision,
            "matmul_flops_per_s": peak_flops_per_s,
        }
        name = f"gpu/{job.size}/{job.method}/{line.side}"
        record(file, name, values, command="python -m benchmarks.gpu " + shlex.join(sys.argv[1:]), on=on)


def _jobs(asked: argparse.Namespace, size: str) -> Iterator[Job]:
    for method in asked.methods:
        yield Job(
            method=method,
            size=size,
            device=asked.device,
            precision="float32" if asked.tiny else "bfloat16",
            sequences=asked.sequences or SEQUENCES[size],
            steps=asked.steps,
            warmup=asked.warmup,
        )


def _compare(asked: argparse.Namespace, job: Job, peak_flops_per_s: float, console: Console) -> list[Figures]:
    """Figures of all sides of a job, in turn, round by round."""
    runs: dict[str, list[Measured]] = {}
    lines: list[Figures] = []
    for number in range(asked.rounds):
        for side in sides(asked, job.method):
            got = side.run(job._replace(checkpointing=side.checkpointing, per_forward=side.per_forward))
            runs.setdefault(side.name, []).append(got)
            shown = got.failed or f"{1e3 * median(got.step_s):.1f} ms"
            told = f"{job.size} {job.method}: round {number + 1}, {side.name}: {shown}"
            console.print(told, style="dim", highlight=False)
            lines = lines_of(job, runs, peak_flops_per_s)
            if asked.results is not None:
                _keep(asked.results, job, lines, peak_flops_per_s)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, keep the lines after every run.

    Returns:
        0; 2 where there is no such device.
    """
    asked, console = parse(arguments), Console(stderr=True)
    if torch.device(asked.device).type == "cuda" and not torch.cuda.is_available():
        print(
            "there is no CUDA device here; `--device cpu --tiny` runs the same code as a test",
            file=sys.stderr,
        )
        return 2
    # Rows of every length: without it the allocator of torch holds a block for each, on all sides.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    dtype = torch.float32 if asked.tiny else torch.bfloat16
    peak_flops_per_s = matmul_flops_per_s(torch.device(asked.device), dtype)
    lines: list[Figures] = []
    for size in asked.sizes:
        # What was compiled for another model is looked through at every call.
        torch.compiler.reset()
        for job in _jobs(asked, size):
            lines += _compare(asked, job, peak_flops_per_s, console)
    print(table(lines))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TruewardError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
