"""Ctrl-C and SIGTERM as a request: the loop sees it between steps, saves and returns. A second one stops at
once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trueward.core.signals import signals_to

__all__ = ["StopRequest", "stop_on_signal"]


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal (`SIGINT`, `SIGTERM`)."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest` for the length of the block (see `signals_to`).

    Outside the main thread the request never comes.
    """
    request = StopRequest()
    with signals_to(request._receive):
        yield request
