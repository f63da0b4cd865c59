"""Answers compared by algebra with the package math-verify, an extra: `pip install 'trueward[verify]'`.

Runs inside a worker process only: simplifying an expression can take for ever.
"""

import importlib

__all__ = ["same"]


def same(completion: str, answer: str) -> float:
    """Whether math-verify finds the answers of both texts to be equal.

    Raises:
        ImportError: the package is not installed.
        ValueError: the reference states no answer that it can read.
    """
    package = importlib.import_module("math_verify")
    # Its own time limits use signals of the main thread; the worker's limit is the one that counts.
    expected = package.parse(answer, parsing_timeout=None)
    if not expected:
        raise ValueError("the reference states no answer that math-verify reads")
    return float(
        package.verify(expected, package.parse(completion, parsing_timeout=None), timeout_seconds=None)
    )
