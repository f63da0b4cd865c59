"""Content hashes: SHA-256 over canonical bytes, shown as 16 hexadecimal characters where people read them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["canonical_json", "hash_bytes", "hash_file", "hash_folder", "hash_json", "hash_lines", "short"]

_CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of `data`, 64 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def hash_json(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hash_bytes(canonical_json(value).encode())


def hash_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines joined with newlines, streaming."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_folder(folder: Path, pattern: str = "*") -> str:
    """SHA-256 over the names and contents of the files in `folder` (not below it) that match `pattern`."""
    names = sorted(path.name for path in folder.glob(pattern) if path.is_file())
    return hash_json([[name, hash_file(folder / name)] for name in names])


def short(digest: str) -> str:
    """The first 16 characters, what file names and tables show."""
    return digest[:16]
