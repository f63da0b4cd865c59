"""The inside of `sandbox`: a script that gives up what it can, then runs program.py. Standard library only.

It runs in the program's own folder. What the kernel refuses it says in `--probe`, and an audit hook, which
cannot be taken off again, refuses network, new processes and foreign functions whatever the kernel allows.
"""

import ctypes
import json
import os
import resource
import runpy
import sys
from typing import Any

__all__ = ["main"]

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
_NOBODY = 65534
_REFUSED = (
    "socket.",
    "subprocess.",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.exec",
    "os.system",
    "os.kill",
    "ctypes.",
    "pty.",
)
_MODULES = {"_posixsubprocess", "_ctypes", "ctypes"}


def _leave_network() -> bool:
    """Move into a network namespace without any device; False where the kernel refuses."""
    library = ctypes.CDLL(None, use_errno=True)
    flags = _NEW_NETWORK if os.geteuid() == 0 else _NEW_NETWORK | _NEW_USER
    return hasattr(library, "unshare") and library.unshare(flags) == 0


def _drop_root() -> None:
    """From root to nobody, where nobody can read this Python; nothing otherwise."""
    if os.geteuid() != 0:
        return
    os.seteuid(_NOBODY)
    try:
        with open(os.__file__, "rb"):  # noqa: PTH123  # pathlib is not needed for one byte
            readable = True
    except PermissionError:
        readable = False
    os.seteuid(0)
    if readable:
        os.chown(".", _NOBODY, _NOBODY)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _limit(cpu_s: int, memory_mib: int, file_mib: int) -> None:
    # One second more for the kernel's last word, SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    for kind, mebibytes in ((resource.RLIMIT_AS, memory_mib), (resource.RLIMIT_FSIZE, file_mib)):
        resource.setrlimit(kind, (mebibytes << 20, mebibytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # No process beside this one. The kernel does not count for root; the audit hook does.
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED) or (event == "import" and arguments[0] in _MODULES):
        raise PermissionError(f"{event} is not allowed here")


def main() -> None:
    """Give up rights and run the program; with `--probe`, say whether the network was left instead."""
    left = _leave_network()
    if sys.argv[1] == "--probe":
        print("namespace" if left else "blocked")
        return
    limits = json.loads(sys.argv[1])
    _drop_root()
    _limit(**limits)
    for name in _MODULES & set(sys.modules):
        del sys.modules[name]
    sys.argv = ["program.py"]
    sys.addaudithook(_refuse)
    runpy.run_path("program.py", run_name="__main__")


if __name__ == "__main__":
    main()
