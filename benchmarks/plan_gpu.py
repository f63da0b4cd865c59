"""`trueward plan` against what `benchmarks.gpu` has measured: memory and time of a step on a GPU.

    python -m benchmarks.plan_gpu [--docs]
Measures nothing: the lines of benchmarks/performance.json say what a step took, and what it was made of is
made again (models and conversations follow from the line). Compared is what tensors take: the process
itself is left out, and what only a stage of the pipeline holds. Ends with 0 if every peak is within 15 %.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.gpu import parse
from benchmarks.gpu_work import METHODS, Job, batches_of, config_of, tokenizer
from benchmarks.plan_check import write_docs
from benchmarks.results import Line, read_lines
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens
from trueward.pipeline.command import resolve
from trueward.pipeline.hardware import device_named
from trueward.pipeline.predict_memory import Memory, predict_memory
from trueward.pipeline.predict_shape import shape_of
from trueward.pipeline.predict_time import predict_time
from trueward.pipeline.predict_work import Work

__all__ = ["Compared", "compare", "main", "measured_lines"]

TARGET = 0.15
_LINES = Path(__file__).with_name("performance.json")
_ABSENT = ("process", "the SFT model it starts from", "reference")
_GIB = 2**30


class Compared(NamedTuple):
    """One line; GiB, and seconds of a median step. tokens: of the longest row of the run."""

    name: str
    date: str
    on: str
    tokens: int
    predicted: float
    measured: float
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def _work(job: Job, groups: Sequence[TokenGroup]) -> Work:
    """A step in one forward, once the moments of AdamW are there."""
    tokens = float(sum(map(count_tokens, groups)))
    scored = sum(len(completion.ids) for group in groups for completion in group.completions)
    return Work(
        stage=job.method,
        step_tokens=tokens,
        mean_step_tokens=tokens,
        forward_tokens=tokens,
        scoring_tokens=tokens,
        completion_share=scored / tokens,
        forwards=1,
        item_tokens=tokens / len(groups),
        sequence_tokens=tokens / len(groups),
        completions=METHODS[job.method],
        items=len(groups),
        # The reference pass, which the benchmark makes within the step.
        scored_items=len(groups) if job.method == "dpo" else 0,
        steps=None,
        precision=job.precision,
        first_moment="float32",
        checkpointing=False,
        max_tokens=2048,
        max_tokens_per_forward=1 << 20,
    )


def _tensors(memory: Memory) -> float:
    """GiB of the widest moment."""
    sizes = [sum(part.size for part in moment.parts if part.name not in _ABSENT) for moment in memory.moments]
    return max(sizes) / _GIB


def compare(line: Line) -> Compared:
    """A measured line of Trueward's side, and what the plan says of its steps."""
    _, size, method, _ = line.name.split("/")
    values = line.values
    asked = parse(shlex.split(line.command)[3:])
    job = Job(
        method=method,  # type: ignore[arg-type]  # one of METHODS
        size=size,
        device=asked.device,
        precision=values["precision"],
        sequences=values["sequences"],
        steps=values["steps"],
        warmup=asked.warmup,
    )
    recipe = resolve("hh", [f"{method}.train={{precision: {job.precision}}}"])
    # `NVIDIA H200`, as torch names it.
    device, shape = device_named(line.machine.split()[1].lower()), shape_of(config_of(size).to_dict())
    works = [_work(job, groups) for groups in batches_of(job, tokenizer())]
    predicted = max(_tensors(predict_memory(recipe, shape, work, device)) for work in works)
    tokens = max(int(work.step_tokens) for work in works)
    times = [predict_time(recipe, shape, work, device) for work in works[job.warmup :]]
    step_s = median(time.step_s + time.setup_s for time in times)
    on = (line.date[:10], line.machine)
    return Compared(line.name, *on, tokens, predicted, values["peak_gib"], step_s, values["step_s"])


def measured_lines(file: Path = _LINES) -> list[Line]:
    """Lines of Trueward's side without recomputing, with a peak."""
    return [
        line
        for line in read_lines(file)
        if line.part == "gpu" and line.name.endswith("/Trueward") and line.values["peak_gib"] is not None
    ]


def table(rows: Sequence[Compared]) -> list[str]:
    """The comparison as Markdown."""
    lines = [
        "| model | method | longest row | predicted GiB | measured | error | predicted ms | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        _, size, method, _ = row.name.split("/")
        lines.append(
            f"| {size} | {method} | {row.tokens:,} | {row.predicted:.1f} | {row.measured:.1f} "
            f"| {row.error:+.1%} | {1e3 * row.predicted_s:.0f} | {1e3 * row.measured_s:.0f} |"
        )
    where = " and ".join(sorted({f"{row.on}, {row.date}" for row in rows}))
    worst = max(abs(row.error) for row in rows)
    return [*lines, "", f"Largest error of the peak: {worst:.1%}. Measured on {where}."]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and with `--docs` write the table into docs/plan.md.

    Returns:
        0 if every peak is within the target, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--docs", action="store_true", help="write the table into docs/plan.md")
    asked = parser.parse_args(arguments)
    rows = [compare(line) for line in measured_lines()]
    lines = table(rows)
    print("\n".join(lines))
    if asked.docs:
        write_docs("plan_gpu", "Written by `python -m benchmarks.plan_gpu --docs`.", lines)
    return 0 if all(abs(row.error) <= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
