"""Writing without harm: every file appears whole or not at all, every folder is published by one rename."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trueward.core.errors import DataError, StorageError

__all__ = [
    "disk_errors",
    "append_jsonl",
    "new_folder",
    "read_json",
    "read_jsonl",
    "replace_folder",
    "write_json",
    "write_jsonl",
    "write_text",
]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What a full or failing disk raises; any other error within a caller's block is the caller's own.
_DISK = _FULL | {errno.EIO, errno.EROFS}
_TAIL_BYTES = 1 << 16


@contextmanager
def disk_errors(path: Path, *, only: frozenset[int] | None = None) -> Iterator[None]:
    """Translate the disk's errors; `only` those numbers, where the block also runs a caller's code."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        reason = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        raise StorageError(
            f"cannot write {path}: {reason}",
            remedy="free space or choose another folder; nothing that was there before has changed",
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_file(path: Path, pieces: Iterable[str]) -> int:
    """Write `pieces` to a temporary sibling and move it to `path`. Returns the number of pieces."""
    count = 0
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with disk_errors(path, only=_DISK), os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            for piece in pieces:
                file.write(piece)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        with disk_errors(path):
            Path(name).chmod(0o644)
            os.replace(name, path)
            _sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds the old or the whole new content, also after a power cut.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    _replace_file(path, [text])


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write one JSON value a line, streaming, atomically. Returns the number of lines.

    An error that `rows` itself raises passes through as it is; the old file is untouched.
    """
    return _replace_file(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: object) -> None:
    """Append one JSON line in a single write, so that a killed process leaves at most a partial last line.

    A partial last line that is there already is cut off first, and a line that the disk takes only in part is
    taken back: every line but the last is always whole.
    """
    line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _end_of_lines(descriptor)
            os.ftruncate(descriptor, end)
            try:
                _write_all(descriptor, line, end)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _end_of_lines(descriptor: int) -> int:
    """Where the last whole line ends: the size of the file, unless a killed writer left a partial line."""
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        DataError: missing, unreadable, not UTF-8, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", remedy="check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="restore the file from its source") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON-lines file that this program wrote, in constant memory.

    A last line without newline marks a killed writer and is not yielded; any other broken line raises.

    Raises:
        DataError: missing, unreadable, or a complete line is not JSON.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", remedy="check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    with file:
        # Bytes, because a partial last line may also end within a character.
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line.decode())
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise DataError(f"{path}:{number} is not JSON: {error}", remedy="restore the file") from error


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A temporary sibling folder, on disk to the last file when the block ends, and gone if it fails."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        folder.chmod(0o755)
    try:
        with disk_errors(path, only=_DISK):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sync_below(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes `path` in one rename when the block ends without an error.

    Raises:
        StorageError: `path` exists already, or the disk refuses.
    """
    if path.exists():
        raise StorageError(f"{path} exists already", remedy="choose another folder, or move the old one away")
    with _staging(path) as folder:
        yield folder
        with disk_errors(path):
            _sync_below(folder)
            os.rename(folder, path)
            _sync(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """As `new_folder`, but an existing `path` moves aside and is deleted once the new one is in place.

    A process killed between the two renames leaves the old folder beside `path`, named `.*.old`.
    """
    with _staging(path) as folder:
        yield folder
        old = folder.with_name(folder.name + ".old")
        with disk_errors(path):
            _sync_below(folder)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(folder, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
