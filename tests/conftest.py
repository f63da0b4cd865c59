"""Fixtures shared by all tests: the public data folder (skips where absent) and single-threaded torch."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that tests start find the same sources as the tests do.
_SOURCES = str(Path(__file__).resolve().parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH")]))
# How long an example takes says more about the machine than about the code.
settings.register_profile("trueward", deadline=None, print_blob=True)
settings.load_profile("trueward")


@pytest.fixture(autouse=True)
def _own_arithmetic() -> Iterator[None]:
    """What one test does to the settings of the processor does not reach the next one."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the public data sets; `TRUEWARD_SHARED` names it, the default lies beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("TRUEWARD_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets are not here; set TRUEWARD_SHARED to their folder")
    return folder
