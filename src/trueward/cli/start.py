"""The entry point: how a process asks for memory is decided before it does anything else.

torch asks glibc for aligned memory. What alignment cuts off goes to a cache of small pieces, these are given
to small objects that live long, and the next tensor of the same size no longer fits where the last one was:
a step that needs 1.6 GiB grows to 2.3. Without the cache the pieces grow together again. glibc reads this
from the environment when a process starts, so the command starts itself anew, before anything is imported.
"""

import importlib
import os
import sys

__all__ = ["ALLOCATOR", "environment", "main"]

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    # Large blocks come from the heap too, and what is freed is kept for the next step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
_OTHERS = ("LD_PRELOAD", "GLIBC_TUNABLES")
# Commands that answer at once.
_QUICK = ("--help", "-h", "--version")


def environment(arguments: list[str], current: dict[str, str], libc: str | None) -> dict[str, str] | None:
    """The environment to start anew with; None to go on in this process.

    Args:
        arguments: those of the command line.
        libc: name and version of the C library, as `os.confstr` gives it.
    """
    if not arguments or any(argument in _QUICK for argument in arguments):
        return None
    # Whoever sets any of this decides.
    if libc is None or not libc.startswith("glibc"):
        return None
    if any(name in _OTHERS or name.startswith("MALLOC_") for name in current):
        return None
    return {**current, **ALLOCATOR}


def _libc() -> str | None:
    return os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None


def main() -> None:
    """Run the command of the command line."""
    wanted = environment(sys.argv[1:], dict(os.environ), _libc()) if os.name == "posix" else None
    if wanted is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
    # Only now: whatever is imported before starting anew is imported twice.
    importlib.import_module("trueward.cli.main").main()
