"""The command starts itself anew with the allocator's settings, once, and only where they mean something."""

import json
import os
import subprocess
import sys

import pytest

from trueward.cli.start import ALLOCATOR, environment

GLIBC = "glibc 2.36"


def test_settings_are_added_to_the_environment() -> None:
    assert environment(["run", "hh"], {"HOME": "/x"}, GLIBC) == {"HOME": "/x", **ALLOCATOR}


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "LD_PRELOAD"])
def test_whoever_sets_the_allocator_decides(name: str) -> None:
    assert environment(["run", "hh"], {name: "1"}, GLIBC) is None


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["--version"]])
def test_what_answers_at_once_goes_on(arguments: list[str]) -> None:
    assert environment(arguments, {}, GLIBC) is None


@pytest.mark.parametrize("libc", [None, "musl 1.2"])
def test_another_library_is_left_alone(libc: str | None) -> None:
    assert environment(["run"], {}, libc) is None


PROGRAM = """
import json, os, sys
from trueward.cli import main, start
found = {name: os.environ.get(name) for name in start.ALLOCATOR}
main.main = lambda: print(json.dumps([sys.argv, found, os.getpid()]))
start.main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked for by name")
def test_a_process_starts_anew_once_with_the_same_arguments() -> None:
    names = {"GLIBC_TUNABLES", "LD_PRELOAD"}
    bare = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("MALLOC_")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "a b", "x=$HOME; 'y'"],
        env=bare, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = json.loads(process.communicate()[0])
    assert said == [["-c", "run", "a b", "x=$HOME; 'y'"], ALLOCATOR, process.pid]
