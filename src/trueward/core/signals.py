"""Signals that wait for the end of a piece of work that must not stop half-way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM that come within reach their handlers at its end: for short work only.

    Outside the main thread Python handles no signals, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # A handler that was not set from Python is None here, and could not be put back.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # All of them, also where the handler of the first raises.
        with ExitStack() as handled:
            for each in reversed(came):
                handled.callback(signal.raise_signal, each)
