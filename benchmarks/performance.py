"""Every figure of docs/performance.md: Trueward against its peers, what each idea buys, how cost grows.

    python -m benchmarks.performance trl decode --rounds 5        # measure some parts
    python -m benchmarks.performance --quick                      # a selection of all parts
    python -m benchmarks.performance --tables                     # write docs/performance.md and its charts
Lines are kept in one JSON file as soon as they are measured, each with its date and command; `--list` names
them, `--only` chooses among them. What is measured and what it means: benchmarks/README.md.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.performance_page import write_page
from benchmarks.performance_tasks import PARTS, Task, tasks
from benchmarks.process import ALLOCATORS
from benchmarks.results import read_lines, record
from benchmarks.vs_trl_work import METHODS, SIZES
from benchmarks.workplace import Workplace
from trueward.core.errors import TruewardError

__all__ = ["chosen", "main", "parse"]

ROOT = Path(__file__).resolve().parents[1]
_PRECISIONS = ("float32", "bfloat16")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 step, the main lines only")
    parser.add_argument("--rounds", type=int, help="pairs of runs of each line (5; quick: 2)")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run (2; quick: 1)")
    parser.add_argument("--models", nargs="+", choices=list(SIZES), help="default: 135M small; quick: 135M")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, help="default: both")
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1 2; quick: 1")
    parser.add_argument("--allocators", nargs="+", choices=list(ALLOCATORS), help="default: all; quick: own")
    parser.add_argument(
        "--peer-recomputes",
        choices=["yes", "no"],
        default="yes",
        help="whether TRL recomputes activations (its default)",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="Trueward recomputes activations too (activation_checkpointing)",
    )
    parser.add_argument(
        "--forward-tokens", type=int, default=512, help="largest forward of Trueward; 0: the batch"
    )
    parser.add_argument(
        "--first-moment", choices=_PRECISIONS, default="float32", help="how Trueward keeps AdamW's"
    )
    parser.add_argument("--batch", type=int, default=8, help="pairs (SFT: answers) per step")
    parser.add_argument("--max-length", type=int, default=512, help="longest prompt plus answer, in tokens")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that decoding draws")
    parser.add_argument("--most-records", type=int, help="end of the growth table (10^6; quick: 10^5)")
    parser.add_argument("--data", type=Path, help="HH-RLHF comparisons, .jsonl or .jsonl.gz")
    parser.add_argument("--only", nargs="+", default=[], help="lines whose name holds one of these words")
    parser.add_argument("--list", action="store_true", help="name the lines and measure nothing")
    parser.add_argument("--tables", action="store_true", help="write the page (also after measuring)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "performance.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    return _filled(parser.parse_args(arguments))


def _filled(asked: argparse.Namespace) -> argparse.Namespace:
    """Defaults that depend on `--quick`."""
    quick = asked.quick
    defaults = {
        "rounds": 2 if quick else 5,
        "steps": 1 if quick else 2,
        "models": ["135M"] if quick else ["135M", "small"],
        "methods": list(METHODS),
        "precisions": list(_PRECISIONS),
        "threads": [1] if quick else [1, 2],
        "allocators": ["own"] if quick else list(ALLOCATORS),
        "most_records": 10**5 if quick else 10**6,
    }
    for name, value in defaults.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    asked.measures = bool(asked.parts) or asked.quick or not asked.tables
    asked.parts = asked.parts or list(PARTS)
    return asked


def chosen(asked: argparse.Namespace) -> Iterator[Task]:
    """The lines that the command line asks for, in the order they are measured."""
    for task in tasks(asked):
        if not asked.only or any(word in task.name for word in asked.only):
            yield task


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep, and write the page where asked.

    Returns:
        0; 1 where nothing matches.
    """
    asked, console = parse(arguments), Console(stderr=True)
    picked = list(chosen(asked)) if asked.measures else []
    if asked.list or (asked.measures and not picked):
        print("\n".join(task.name for task in picked))
        return 0 if picked else 1
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = f"python -m benchmarks.performance {shlex.join(words)}"
    with tempfile.TemporaryDirectory(prefix="trueward-performance-") as name:
        place = Workplace(Path(name), asked.data, asked.batch * max(asked.steps, 4), asked.max_length)
        for number, task in enumerate(picked, 1):
            started_s = time.monotonic()
            record(asked.results, task.name, task.measure(place), command=command)
            took_s = time.monotonic() - started_s
            console.print(f"{number}/{len(picked)} {task.name}: {took_s:.0f} s", style="dim", highlight=False)
    if asked.tables:
        write_page(asked.page, read_lines(asked.results))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TruewardError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
