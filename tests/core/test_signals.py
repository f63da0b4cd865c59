"""Signals that wait."""

import signal
import threading
from collections.abc import Iterator

import pytest

from trueward.core.signals import uninterrupted


@pytest.fixture
def received() -> Iterator[list[int]]:
    """What handlers of this test get, in order."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: seen.append(number)) for number in numbers]
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_wait_for_the_end_and_come_in_their_order(received: list[int]) -> None:
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert received == []
    assert received == [signal.SIGTERM, signal.SIGINT]
    signal.raise_signal(signal.SIGINT)
    assert len(received) == 3


def test_an_error_within_still_lets_them_come(received: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert received == [signal.SIGINT]


def test_ctrl_c_is_raised_at_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_a_signal_after_ctrl_c_is_not_lost(received: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_one_within_another_waits_for_the_outer(received: list[int]) -> None:
    with uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert received == []
    assert received == [signal.SIGINT]


def test_another_thread_works_as_before() -> None:
    handlers: list[object] = []

    def work() -> None:
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
