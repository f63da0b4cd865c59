"""What is slow is imported while nothing is searched for garbage, and the collector is left as it was."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueward.core.imports import import_at_rest

MODULE = "import gc\nCOLLECTS = gc.isenabled()\nFOUND = [[] for _ in range(20_000)]\n"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    callbacks = list(gc.callbacks)
    yield
    gc.callbacks[:] = callbacks
    gc.unfreeze()
    gc.enable()


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_nothing_is_searched_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    name = written(tmp_path, monkeypatch, "a_slow_module", MODULE)
    gc.callbacks.append(lambda phase, _: searched.append(phase))
    before = gc.get_freeze_count()
    module = import_at_rest(name)
    assert not searched and not module.COLLECTS
    assert gc.isenabled() and gc.get_freeze_count() > before + 20_000


def test_a_collector_that_was_off_stays_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()
    import_at_rest(written(tmp_path, monkeypatch, "another_slow_module", MODULE))
    assert not gc.isenabled()


def test_a_module_that_fails_leaves_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        import_at_rest(written(tmp_path, monkeypatch, "a_module_that_fails", "1 / 0\n"))
    assert gc.isenabled()
