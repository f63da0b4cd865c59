"""A measurement in a process of its own: its task goes in as JSON, its figures come out as JSON.

Not here: what is measured. The environment decides what can only be decided before a process starts: threads
and the memory allocator.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueward.cli.start import ALLOCATOR
from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json

__all__ = ["ALLOCATORS", "age_s", "command_s", "run_module"]

ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    # Each side as its own command starts: see vs_trl.run_process.
    "own": {},
    # As Trueward's commands start: glibc keeps what it has, and no cache of small pieces.
    "kept": ALLOCATOR,
}


def run_module(
    module: str, job: Mapping[str, Any], folder: Path, *, threads: int = 1, allocator: str = "default"
) -> dict[str, Any]:
    """`python -m MODULE JOB.json RESULT.json`.

    Args:
        folder: where the two files go.
        threads: of OpenMP and MKL.
        allocator: name in `ALLOCATORS`.

    Raises:
        RunError: the process failed; its last line is in the message, more of them on standard error.
    """
    asked, result = folder / "job.json", folder / "result.json"
    result.unlink(missing_ok=True)
    write_json(asked, dict(job))
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", module, str(asked), str(result)],
        env={**os.environ, **counts, **quiet, **ALLOCATORS[allocator]},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stderr[-4000:], file=sys.stderr)
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"{module} failed: {last}")
    figures: dict[str, Any] = read_json(result)
    return figures


def command_s(*arguments: str) -> float:
    """Seconds that the command `trueward` takes from its start to its end, with what it prints thrown away.

    Raises:
        RunError: it failed, or is not installed beside this interpreter.
    """
    command = Path(sys.executable).with_name("trueward")
    started_s = time.monotonic()
    try:
        subprocess.run([command, *arguments], stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"{command} {' '.join(arguments)} failed: {error}") from error
    return time.monotonic() - started_s


def age_s() -> float:
    """Seconds since this process started, as the kernel knows it."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100.0
