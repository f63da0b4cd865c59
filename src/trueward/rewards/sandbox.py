"""Running a program that a model wrote: in another process, without network, under limits.

Limits, not a jail: it stops endless loops, memory, files, processes and the network. A program can still read
what its user may read, so on a machine with secrets run the whole training in a container.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

from rich.console import Console

__all__ = ["Ended", "Limits", "network_isolation", "run_programs"]

_SCRIPT = Path(__file__).with_name("_sandbox.py")
_MAX_DETAIL = 300
# Said by the tests' last line, after everything before it ran: a program that leaves early cannot pass.
_TRAILER = '\n\nimport sys\n\nsys.stdout.write("\\n" + sys.stdin.readline())\nsys.stdout.flush()\n'


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use: processor seconds, memory and size of a file in MiB."""

    cpu_s: int
    memory_mib: int
    file_mib: int


class Ended(NamedTuple):
    """How a program ended.

    outcome: `passed` it came to its last line; `failed` it did not; `cpu` it used up its processor time;
        `late` it ran into the wall-clock limit without having done so.
    detail: the last line it wrote to its error output.
    """

    outcome: Literal["passed", "failed", "cpu", "late"]
    detail: str


@cache
def network_isolation() -> Literal["namespace", "blocked"]:
    """How programs are kept off the network here: by the kernel, or, where it refuses, inside Python only.

    The second is said once, because a program could get round it.
    """
    done = subprocess.run([*_command(), "--probe"], capture_output=True, text=True, check=False, timeout=60)
    if done.stdout.strip() == "namespace":
        return "namespace"
    Console(stderr=True).print(
        "the kernel allows no network namespace here: programs are kept off the network by an audit hook in "
        "Python alone; run in a container without network if they are not to be trusted",
        markup=False,
    )
    return "blocked"


def _command() -> list[str]:
    return [sys.executable, "-I", "-B", str(_SCRIPT)]


def _last_line(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 4096))
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:_MAX_DETAIL] if lines else ""


def _run(program: str, limits: Limits, time_s: float) -> Ended:
    word = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="trueward-") as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        Path(folder, "program.py").write_text(program + _TRAILER, encoding="utf-8", errors="surrogatepass")
        process = subprocess.Popen(
            [*_command(), json.dumps(asdict(limits))],
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PATH": "", "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        late = False
        try:
            process.communicate(f"{word}\n".encode(), timeout=time_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            # Also after an orderly end: what it may have left running in its group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if late:
            return Ended("late", f"not done within {time_s:g} s")
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return Ended("cpu", f"used up its {limits.cpu_s} s of processor time, or was killed")
        passed = process.returncode == 0 and _last_line(output) == word
        return Ended("passed", "") if passed else Ended("failed", _last_line(errors) or "left early")


def run_programs(programs: Sequence[str], *, limits: Limits, time_s: float, num_workers: int) -> list[Ended]:
    """Run programs, a few at a time, each in a process and an empty folder of its own.

    Args:
        limits: of each.
        time_s: wall-clock limit of each.
        num_workers: how many run at once.

    Returns:
        How each ended, in order.
    """
    network_isolation()
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        return list(pool.map(lambda program: _run(program, limits, time_s), programs))
