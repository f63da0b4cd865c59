"""Nothing on disk is harmed: failures at every step of a write leave what was there before."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueward.core.errors import DataError, StorageError
from trueward.core.files import (
    append_jsonl,
    new_folder,
    read_json,
    read_jsonl,
    replace_folder,
    write_json,
    write_jsonl,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def disk_full(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(value=JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


@given(values=st.lists(JSON, max_size=5))
def test_json_lines_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    assert write_jsonl(path, values) == len(values)
    for value in values:
        append_jsonl(path, value)
    assert list(read_jsonl(path)) == values + values


def test_a_write_makes_its_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "old")
    write_text(path, "new\r\n")
    assert path.read_bytes() == b"new\r\n"
    assert names(path.parent) == ["c.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_jsonl(path, [1, 2]),
        lambda path: write_json(path, 1),
    ],
    ids=["text", "jsonl", "json"],
)
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], call: str
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(os, call, disk_full)
    with pytest.raises(
        StorageError, match=r"cannot write .*/a: the disk is full; free space .*unchanged|has changed"
    ):
        write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from trueward.core.errors import StorageError
from trueward.core.files import append_jsonl, new_folder, write_jsonl, write_text

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder, call = Path(sys.argv[1]), sys.argv[2]
long = "x" * 100_000
try:
    if call == "text":
        write_text(folder / "old", long)
    elif call == "jsonl":
        write_jsonl(folder / "old", (long for _ in range(3)))
    elif call == "append":
        append_jsonl(folder / "old", long)
    else:
        with new_folder(folder / "made") as staging:
            (staging / "a").write_text(long)
except StorageError as error:
    sys.exit(f"StorageError: {error}")
"""


@pytest.mark.parametrize("call", ["text", "jsonl", "append", "folder"])
def test_a_file_size_limit_in_a_real_process(tmp_path: Path, call: str) -> None:
    (tmp_path / "old").write_text('"old"\n')
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), call], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "StorageError: cannot write" in done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "old").read_text() == '"old"\n'
    assert names(tmp_path) == ["old"]


def test_an_error_of_the_rows_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [1])

    def rows() -> Iterator[int]:
        yield 2
        raise FileNotFoundError(errno.ENOENT, "gone", "input.gz")

    with pytest.raises(FileNotFoundError, match=r"input\.gz"):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == [1]
    assert names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}], ids=str)
def test_what_is_no_json_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    for write in (write_json, append_jsonl, lambda p, v: write_jsonl(p, [v])):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*/file/a: "):
        write_text(tmp_path / "file" / "a", "x")
    with pytest.raises(StorageError, match=r"cannot write .*/file/a: "), new_folder(tmp_path / "file" / "a"):
        pass


@pytest.mark.parametrize("cut", [1, 3, 6, 8])
def test_a_partial_last_line_is_not_read_and_not_built_upon(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [1, "é日本"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert list(read_jsonl(path)) == [1]
    append_jsonl(path, 2)
    assert list(read_jsonl(path)) == [1, 2]


@pytest.mark.parametrize("length", [10, 70_000, 200_000])
def test_a_long_partial_line_is_cut_off_whole(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n" + "x" * length)
    append_jsonl(path, 2)
    assert path.read_text() == "1\n2\n"
    path.write_text("x" * length)
    append_jsonl(path, 3)
    assert path.read_text() == "3\n"


@pytest.mark.parametrize("line", [b"{", b"\xff", b"NaN x"], ids=["syntax", "encoding", "rest"])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + line + b"\n3\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2 is not JSON"):
        list(read_jsonl(path))


def test_other_line_separators_are_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ["a\u2028b\x85c\x0bd\r"])
    assert list(read_jsonl(path)) == ["a\u2028b\x85c\x0bd\r"]


@pytest.mark.parametrize("read", [read_json, lambda path: list(read_jsonl(path))], ids=["json", "jsonl"])
def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="none does not exist; check the path"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory; check the path"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"1 2"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not JSON"):
        read_json(path)


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x" / "made") as staging:
        (staging / "a").write_text("1")
        (staging / "sub").mkdir()
        (staging / "sub" / "b").write_text("2")
        assert not (tmp_path / "x" / "made").exists()
    assert (tmp_path / "x" / "made" / "sub" / "b").read_text() == "2"
    assert names(tmp_path / "x") == ["made"]


def test_a_new_folder_refuses_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="exists already; choose another folder"), new_folder(tmp_path):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("make", [new_folder, replace_folder])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (DataError("odd"), DataError),
        (FileNotFoundError(errno.ENOENT, "gone", "other"), FileNotFoundError),
        (OSError(errno.ENOSPC, "full"), StorageError),
    ],
    ids=["interrupt", "data", "other file", "full"],
)
def test_a_block_that_fails_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], object], raised: BaseException, seen: type[BaseException]
) -> None:
    with pytest.raises(seen) as error, make(tmp_path / "made") as staging:  # type: ignore[attr-defined]
        (staging / "a").write_text("1")
        raise raised
    assert (type(error.value) is StorageError) == (seen is StorageError)
    assert names(tmp_path) == []


def test_replacing_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text in ("old", "new"):
        with replace_folder(path) as staging:
            (staging / text).write_text(text)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("failing", [1, 2], ids=["moving the old aside", "moving the new in"])
def test_a_failed_replacement_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    rename, calls = os.rename, iter(range(1, 10))

    def failing_rename(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(StorageError, match="broken"), replace_folder(path) as staging:
        (staging / "new").write_text("new")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_the_files_of_a_folder_are_on_disk_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    with new_folder(tmp_path / "made") as staging:
        (staging / "weights").write_text("1")
    assert "weights" in events[: events.index("rename")]
    assert events[-1] == tmp_path.name
