"""The list of faults fits the code: each still has exactly one place to go, so the list cannot rot."""

import pytest

from tests.mutants.fault import ROOT, Fault, planted
from tests.mutants.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_applies_and_compiles(fault: Fault) -> None:
    compile(planted(fault), fault.file, "exec")
    assert fault.tests and all((ROOT / "tests" / test).is_file() for test in fault.tests)


def test_there_are_enough_and_each_is_one() -> None:
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


def test_an_outdated_fault_is_an_error() -> None:
    fault = Fault(name="gone", file="objectives/kl.py", old="no such text", new="", tests=("x",))
    with pytest.raises(ValueError, match=r"must occur exactly once in objectives/kl\.py, found 0 times"):
        planted(fault)
