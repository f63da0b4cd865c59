"""Calling a function in a process of its own, so that one that hangs, crashes or prints costs one verdict.

Not a sandbox: the function is the user's own, or ours. Programs that a model wrote run in `sandbox`.
"""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from trueward.core.errors import ConfigError
from trueward.rewards.verdict import Verdict, failed, scored

__all__ = ["call_many", "check_target"]

_SCRIPT = Path(__file__).with_name("_worker.py")
# Importing a module of a user may mean importing torch.
_START_S = 60.0


class _Late(Exception):
    """No reply within the limit."""


class _Worker:
    """A process with one function. Start it with `with`; a call that is late or fatal ends it for good."""

    def __init__(self, target: str) -> None:
        self._target = target

    def __enter__(self) -> "_Worker":
        # In a session of its own, so that Ctrl-C reaches the trainer alone, which saves first.
        self._process = subprocess.Popen(
            [sys.executable, "-B", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            # The folder that the command was called in, which an installed command does not have in its path.
            path = [str(Path.cwd()), *sys.path]
            reply = self._ask({"path": path, "target": self._target}, _START_S)
        except (_Late, BrokenPipeError):
            reply = {"error": f"importing it crashes, or takes more than {_START_S:g} s"}
        except BaseException:
            self.close()
            raise
        if "error" in reply:
            self.close()
            raise ConfigError(
                f"the function {self._target!r} cannot be used: {reply['error']}",
                expected="module:function, importable from the present folder or an installed package",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, arguments: Sequence[object], time_s: float) -> Verdict:
        """The function's value as a verdict.

        Raises:
            _Late, BrokenPipeError: the worker is gone or has to go.
        """
        reply = self._ask(list(arguments), time_s)
        return failed("raised", reply["error"]) if "error" in reply else scored(float(reply["value"]))

    def _ask(self, message: object, time_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        line, deadline = b"", time.monotonic() + time_s
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise _Late
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise BrokenPipeError
                line += part
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """Kill the process and whatever it started in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both are pipes"
            with suppress(BrokenPipeError):
                pipe.close()


def call_many(target: str, arguments: Sequence[Sequence[object]], *, time_s: float) -> list[Verdict]:
    """Call a function once for each list of arguments.

    Args:
        target: `module:function`; it takes JSON values and returns a number.
        time_s: limit of one call; a call beyond it is the verdict `timed out`.

    Raises:
        ConfigError: the function cannot be imported.
        ValueError: time_s is not > 0.
    """
    if not (math.isfinite(time_s) and time_s > 0):
        raise ValueError(f"time_s must be finite and > 0, got {time_s}")
    verdicts: list[Verdict] = []
    while len(verdicts) < len(arguments):
        with _Worker(target) as worker:
            for each in arguments[len(verdicts) :]:
                try:
                    verdicts.append(worker.call(each, time_s))
                except _Late:
                    verdicts.append(failed("timed out", f"no value within {time_s:g} s"))
                    break
                except BrokenPipeError:
                    verdicts.append(failed("raised", "its process ended"))
                    break
    return verdicts


def check_target(target: str) -> None:
    """Import a function once, in a process of its own.

    Raises:
        ConfigError: it cannot be imported, or takes longer than a minute.
    """
    with _Worker(target):
        pass
