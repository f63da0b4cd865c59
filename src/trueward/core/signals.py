"""Who handles SIGINT and SIGTERM for a while, and work that they must not stop half-way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

__all__ = ["signals_to", "uninterrupted"]


@contextmanager
def signals_to(receive: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """SIGINT and SIGTERM reach `receive` instead of their handlers, which are put back at the end.

    Outside the main thread Python takes no handlers; there nothing is done, and the caller's own hold.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler that was not set from Python is None here, and could not be put back.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM that come within reach their handlers at its end: for short work only."""
    came: list[int] = []
    try:
        with signals_to(lambda number, _: came.append(number)):
            yield
    finally:
        # All of them, also where the handler of the first raises.
        with ExitStack() as handled:
            for each in reversed(came):
                handled.callback(signal.raise_signal, each)
