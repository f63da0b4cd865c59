"""Trueward against TRL: six methods on the same pairs, weights, batch and precision.

    python -m benchmarks.vs_trl --method all --rounds 2
Runs alternate, Trueward then TRL, each in a process of its own, so that both see the same machine and memory
is measured by the kernel. What is measured and what it means: benchmarks/README.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.process import ALLOCATORS, run_module
from benchmarks.vs_trl_table import FLOORS, Comparison, Run, compare, table
from benchmarks.vs_trl_work import (
    METHODS,
    Job,
    Size,
    batch_of,
    batches_of,
    data_file,
    groups_of,
    make_model,
    real_tokens,
    write_pairs,
)
from trueward.core.errors import TruewardError
from trueward.core.files import write_json

__all__ = ["ALLOCATORS", "SIDES", "main", "parse", "plan"]

SIDES = {"trueward": "benchmarks.vs_trl_ours", "trl": "benchmarks.vs_trl_theirs"}
_RECOMPUTE = {
    "off": "as one batch",
    "peer": "TRL recomputes activations",
    "both": "both recompute activations",
}


class Case(NamedTuple):
    """One line of the table: both sides run it, under the same allocator."""

    setting: str
    ours: Job
    theirs: Job
    allocator: str


_SETTINGS = {
    "own": "each with the allocator's settings of its command",
    "kept": "both with the allocator's settings of Trueward's command",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl", description=__doc__)
    parser.add_argument("--method", choices=[*METHODS, "all"], default="all")
    parser.add_argument("--data", type=Path, help="HH-RLHF comparisons, .jsonl or .jsonl.gz")
    parser.add_argument("--model", help="model folder with a chat template; default: a random Llama")
    parser.add_argument("--width", type=int, default=576, help="width of the random Llama, in heads of 64")
    parser.add_argument("--layers", type=int, default=5, help="layers of the random Llama")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a run")
    parser.add_argument("--batch", type=int, default=8, help="pairs (SFT: answers) per step")
    parser.add_argument("--max-length", type=int, default=512, help="longest prompt plus answer, in tokens")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of runs for each line of the table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", choices=[*ALLOCATORS, "both"], default="default")
    parser.add_argument("--checkpointing", choices=list(_RECOMPUTE), default="off")
    parser.add_argument("--forward-tokens", type=int, help="largest forward of Trueward (default: the batch)")
    parser.add_argument("--out", type=Path, help="write every run and the table as JSON")
    return parser.parse_args(arguments)


def plan(asked: argparse.Namespace, work: Path) -> list[Case]:
    """The lines of the table, in the order they run.

    `--checkpointing` says who recomputes activations in the backward: nobody, TRL alone (its default,
    against Trueward's), or both.
    """
    methods = METHODS if asked.method == "all" else (asked.method,)
    allocators = list(ALLOCATORS) if asked.allocator == "both" else [asked.allocator]
    recompute = asked.checkpointing
    cases = []
    for method in methods:
        job = Job(
            method=method,
            work=str(work),
            steps=asked.steps,
            batch=batch_of(method, asked.batch),
            max_length=asked.max_length,
            lr=asked.lr,
            threads=asked.threads,
            checkpointing=recompute == "both",
            forward_tokens=asked.forward_tokens,
            precision=asked.precision,
        )
        for allocator in allocators:
            words = [_RECOMPUTE[recompute]]
            words += [_SETTINGS[allocator]] if allocator in _SETTINGS else []
            words += [f"Trueward in forwards of {asked.forward_tokens}"] if asked.forward_tokens else []
            cases.append(
                Case(", ".join(words), job, job._replace(checkpointing=recompute != "off"), allocator)
            )
    return cases


def run_process(side: str, job: Job, allocator: str, folder: Path) -> Run:
    """Run one side in a process of its own.

    Raises:
        RunError: the process failed; its last lines are in the message.
    """
    environment = "kept" if (allocator, side) == ("own", "trueward") else allocator
    return Run.of(run_module(SIDES[side], job._asdict(), folder, threads=job.threads, allocator=environment))


def measure(case: Case, *, rounds: int, folder: Path, console: Console) -> tuple[Comparison, list[Run]]:
    """Trueward, TRL, Trueward, TRL, ...

    Returns:
        The figures, and every run in the order it ran.
    """
    ours: list[Run] = []
    theirs: list[Run] = []
    for number in range(rounds):
        for side, job, runs in (("trueward", case.ours, ours), ("trl", case.theirs, theirs)):
            runs.append(run_process(side, job, case.allocator, folder))
            console.print(
                f"{job.method}, {case.setting}: round {number + 1}, {side}, {runs[-1].seconds:.1f} s",
                style="dim",
            )
    groups = groups_of(case.ours)
    tokens = sum(real_tokens([groups[i] for i in batch]) for batch in batches_of(case.ours))
    runs = [run for pair in zip(ours, theirs, strict=True) for run in pair]
    return compare(case.ours.method, case.setting, ours, theirs, tokens=tokens), runs


def _conditions(asked: argparse.Namespace, parameters: int) -> str:
    names = ("torch", "transformers", "trl")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{parameters / 1e6:.1f}M parameters, {asked.precision}, batch {asked.batch}, at most "
        f"{asked.max_length} tokens, {asked.steps} steps, {asked.threads} thread(s); {versions}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        0 where every floor is met, else 1.
    """
    asked, console = parse(arguments), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="trueward-vs-trl-") as name:
        work = Path(name)
        file = data_file(asked.data)
        size = Size.of_width(asked.width, asked.layers)
        parameters = make_model(work, path=asked.model, size=size, seed=0)
        write_pairs(work, file, count=asked.steps * asked.batch, max_length=asked.max_length, seed=0)
        rows: list[Comparison] = []
        records: list[dict[str, object]] = []
        for case in plan(asked, work):
            row, runs = measure(case, rounds=asked.rounds, folder=work, console=console)
            rows.append(row)
            records.append({"method": row.method, "setting": row.setting, "runs": [_record(r) for r in runs]})
    print(_conditions(asked, parameters))
    print()
    print(table(rows))
    if asked.out is not None:
        write_json(asked.out, {"conditions": _conditions(asked, parameters), "lines": records})
    return 0 if all(row.meets(FLOORS[row.method]) for row in rows) else 1


def _record(run: Run) -> dict[str, object]:
    return {name: getattr(run, name) for name in Run.__slots__}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TruewardError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
