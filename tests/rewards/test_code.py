"""The sandbox: right, wrong, cheating, endless, greedy and curious programs."""

import time
from pathlib import Path

import pytest

from trueward.rewards import Case, Verdict
from trueward.rewards.code import code, program_of
from trueward.rewards.sandbox import Limits, network_isolation

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\n"
LIMITS = Limits(cpu_s=1, memory_mib=256, file_mib=1)


def judge(*programs: str, tests: str = TESTS, time_s: float = 10.0) -> list[Verdict]:
    return code([Case(program, tests) for program in programs], limits=LIMITS, time_s=time_s, num_workers=2)


def test_the_program_is_the_last_fenced_block() -> None:
    text = "First\n```python\nx = 1\n```\nno, better:\n```py\nx = 2\n```\nDone."
    assert program_of(text) == "x = 2\n"
    assert program_of("x = 3") == "x = 3"
    assert program_of("```text\nno program\n```") == "```text\nno program\n```"


def test_right_and_wrong_programs() -> None:
    right = "Here:\n```python\nfrom __future__ import annotations\ndef add(a, b):\n    return a + b\n```"
    verdicts = judge(right, "def add(a, b): return a - b", "def add(a, b) return", "")
    assert [v.score for v in verdicts] == [1.0, 0.0, 0.0, 0.0]
    assert [v.error for v in verdicts] == [None] * 4
    assert verdicts[1].detail == "AssertionError"
    assert "SyntaxError" in verdicts[2].detail
    assert "NameError" in verdicts[3].detail


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "print('passed'); quit = exit",
        "def add(a, b): return 5\nimport atexit, os; atexit.register(os._exit, 0)",
        "if False:",
        '"""',
    ],
)
def test_leaving_early_does_not_pass(program: str) -> None:
    (verdict,) = judge(program)
    assert (verdict.score, verdict.error) == (0.0, None)


def test_an_endless_loop_is_wrong() -> None:
    (loop,) = judge("while True: pass", time_s=60.0)
    assert (loop.score, loop.error) == (0.0, None)
    assert "processor time" in loop.detail


def test_a_sleeper_is_an_error_and_is_killed() -> None:
    start_s = time.monotonic()
    (sleeper,) = judge("import time; time.sleep(60)", time_s=1.0)
    assert (sleeper.score, sleeper.error) == (None, "timed out")
    assert time.monotonic() - start_s < 20


def test_a_reference_without_tests_is_an_error() -> None:
    (verdict,) = judge("x = 1", tests=" \n")
    assert (verdict.score, verdict.error) == (None, "raised")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(1 << 22))", "File too large"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "not allowed"),
        ("import subprocess; subprocess.run(['true'])", "not allowed"),
        ("import os; os.fork()", "not allowed"),
        ("import os; os.system('true')", "not allowed"),
        ("import ctypes", "not allowed"),
        ("import _posixsubprocess", "not allowed"),
        ("import os; os.kill(os.getppid(), 9)", "not allowed"),
        ("while True: print('x' * 1000)", "File too large"),
    ],
)
def test_limits(program: str, said: str) -> None:
    (verdict,) = judge(program + "\ndef add(a, b): return a + b")
    assert verdict.score == 0.0
    assert said in verdict.detail


def test_a_program_works_in_a_folder_of_its_own_without_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    tests = (
        "import os\nassert 'SECRET_TOKEN' not in os.environ\nassert os.listdir() == ['program.py']\n"
        "open('made', 'w').write('x')\nimport sys\nassert '' not in sys.path\n"
    )
    (verdict,) = judge("", tests=tests)
    assert verdict.score == 1.0, verdict.detail
    assert list(tmp_path.iterdir()) == []


def test_threads_leave_nothing_running() -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    (verdict,) = judge(program + "\ndef add(a, b): return a + b", time_s=1.0)
    assert verdict.score is None or verdict.score == 0.0


def test_the_network_is_left_or_it_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    network_isolation.cache_clear()
    mode = network_isolation()
    assert ("audit hook" in capfd.readouterr().err) == (mode == "blocked")
