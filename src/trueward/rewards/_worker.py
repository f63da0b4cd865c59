"""The other end of `worker`: a script that calls one function again and again. Standard library only.

Lines of JSON: `{"path", "target"}` first, then a list of arguments each; the replies are `{"ready": true}`,
`{"value": x}` or `{"error": text}`. What the function prints goes nowhere: replies have a pipe of their own.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["main"]

_MAX_DETAIL = 300


def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{target} is no function")
    return function


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL]


def _answer(function: Callable[..., Any], line: str) -> dict[str, Any]:
    try:
        value = function(*json.loads(line))
        if not isinstance(value, bool | int | float):
            return {"error": f"it returned {type(value).__name__}, not a number"}
        return {"value": float(value)}
    except Exception as error:  # The boundary of a process: whatever a verifier raises is its outcome.
        return {"error": _said(error)}


def main() -> None:
    """Serve until the input ends."""
    replies: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    first = json.loads(sys.stdin.readline())
    sys.path[:] = first["path"]
    try:
        function = _load(first["target"])
        reply: dict[str, Any] = {"ready": True}
    except Exception as error:  # The same boundary: a module of a user may fail in any way.
        reply = {"error": _said(error)}
    print(json.dumps(reply), file=replies, flush=True)
    if "error" in reply:
        return
    for line in sys.stdin:
        print(json.dumps(_answer(function, line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
