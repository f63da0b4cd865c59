"""Plant each fault in a copy of the sources, run its tests there, and print which test caught it.

Exit 1 if a fault survives. The unchanged copy is tested first: a test that fails anyway catches nothing.
Every run is a process of its own, forked from one that has imported torch and nothing of the package.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from tests.mutants.fault import ROOT, Fault, copy_sources, planted
from tests.mutants.faults import FAULTS


class _FirstFailure:
    """A pytest plugin that remembers the first failing test."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid


def _run(fault: Fault | None, tests: Sequence[str]) -> str | None:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copied = copy_sources(Path(folder), fault)
        output = Path(folder) / "output"
        # The configuration puts the working tree's src first; here it is the copy that is tested.
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={copied} {ROOT}"]
        seen = _FirstFailure()
        with output.open("w", encoding="utf-8") as stream, redirect_stdout(stream):
            code = pytest.main([*arguments, *(f"tests/{test}" for test in tests)], plugins=[seen])
        tail = output.read_text(encoding="utf-8")[-2000:]
        place = sys.modules["trueward"].__file__ if "trueward" in sys.modules else None
        if place is None or not Path(place).is_relative_to(copied):
            raise RuntimeError(f"the tests imported trueward from {place}, not from the copy\n{tail}")
    if code == pytest.ExitCode.OK:
        return None
    if code != pytest.ExitCode.TESTS_FAILED or seen.name is None:
        raise RuntimeError(f"pytest ended with {code!r}, so the fault was not tested:\n{tail}")
    return seen.name.removeprefix("tests/")


def failed_test(task: tuple[Fault | None, Sequence[str]]) -> str | None:
    """First failing test on a copy with the fault; None if all pass. Runs in a process of its own.

    Raises:
        RuntimeError: pytest neither passed nor failed, as where the copy cannot be imported.
    """
    assert "trueward" not in sys.modules, "the package was imported before its copy was made"
    os.chdir(ROOT)
    torch.set_num_threads(1)
    return _run(*task)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name or file contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="faults tested at once")
    arguments = parser.parse_args()
    faults = [f for f in FAULTS if arguments.only in f.name or arguments.only in f.file]
    if not faults:
        raise SystemExit(f"no fault contains {arguments.only!r}")
    start_s = time.monotonic()
    for fault in faults:
        planted(fault)
    width = max(len(fault.name) for fault in faults)
    survivors = 0
    tasks = [(fault, fault.tests) for fault in faults]
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        healthy = (None, sorted({test for fault in faults for test in fault.tests}))
        failed = pool.apply(failed_test, (healthy,))
        if failed is not None:
            raise SystemExit(f"{failed} fails without any fault; nothing can be concluded")
        for fault, caught in zip(faults, pool.imap(failed_test, tasks, chunksize=1), strict=True):
            survivors += caught is None
            print(f"{fault.file:32}  {fault.name:{width}}  {caught or 'SURVIVED'}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults caught in {time.monotonic() - start_s:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
