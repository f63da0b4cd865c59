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
    "append_jsonl",
    "new_folder",
    "read_json",
    "read_jsonl",
    "replace_folder",
    "write_json",
    "write_jsonl",
    "write_text",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        raise StorageError(
            f"cannot write {path}: {reason}",
            remedy="free space or choose another folder; nothing that was there before has changed",
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds the old or the whole new content, also after a power cut.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write one JSON value a line, streaming, atomically. Returns the number of lines."""
    count = 0
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return count


def append_jsonl(path: Path, row: object) -> None:
    """Append one JSON line in a single write, so that a killed process leaves at most a partial last line."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with _disk_errors(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(line)


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        DataError: missing, not UTF-8, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", remedy="check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="restore the file from its source") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON-lines file that this program wrote, in constant memory.

    A last line without newline is the mark of a killed writer and is not yielded; any other raises.

    Raises:
        DataError: a complete line is not JSON.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number} is not JSON: {error}", remedy="restore the file") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes `path` in one rename when the block ends without an error.

    Raises:
        StorageError: `path` exists already, or the disk refuses.
    """
    if path.exists():
        raise StorageError(f"{path} exists already", remedy="choose another folder, or move the old one away")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        staging.chmod(0o755)
        try:
            yield staging
            os.rename(staging, path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """As `new_folder`, but an existing `path` moves aside and is deleted once the new one is in place."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        staging.chmod(0o755)
        try:
            yield staging
            old = staging.with_name(staging.name + ".old")
            if path.exists():
                os.rename(path, old)
            os.rename(staging, path)
            _sync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
