"""Ids that may occur once: what comes twice is found wherever it lies, and nothing else is."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueward.core.errors import StorageError
from trueward.data import unique
from trueward.data.unique import UniqueIds, id_digest


def repeated(folder: Path, names: list[str]) -> list[int]:
    folder.mkdir()
    ids = UniqueIds(folder)
    for name in names:
        ids.add(name)
    return list(ids.repeated())


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.text(max_size=2), max_size=60))
def test_exactly_what_comes_twice_is_found(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique, "_BUFFERED", 3)
        got = repeated(tmp_path_factory.mktemp("ids") / "parts", names)
    assert sorted(got) == sorted({id_digest(name) for name in names if names.count(name) > 1})


def test_a_repetition_far_away_is_found(tmp_path: Path) -> None:
    names = [f"row-{n}" for n in range(200_000)]
    assert repeated(tmp_path / "once", names) == []
    assert repeated(tmp_path / "twice", [*names, names[3], names[3], names[150_000]]) == unordered(
        names[3], names[150_000]
    )


def unordered(*names: str) -> list[int]:
    """Digests in the order of the parts."""
    return sorted(map(id_digest, names), key=lambda digest: digest % 64)


def test_a_disk_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "_BUFFERED", 1)
    ids = UniqueIds(tmp_path / "absent")
    with pytest.raises(StorageError):
        ids.add("a")
