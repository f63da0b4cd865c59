"""Ids that may occur once, among any number of them, in constant memory: hashes go to disk in parts, and a
part is small enough to be looked through at the end.
"""

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trueward.core.files import disk_errors

__all__ = ["UniqueIds", "id_digest"]

# A part holds every 64th hash: 125 KB of a million ids, 12 MB of a hundred million.
_PARTS = 64
_BUFFERED = 1024


def id_digest(name: str) -> int:
    """64 bits of an id; two of a million ids share them with a chance of 3e-8."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class UniqueIds:
    """Takes ids one by one; says at the end which came twice.

    Args:
        folder: an existing folder of its own, for files that the caller deletes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting = [array("Q") for _ in range(_PARTS)]

    def add(self, name: str) -> None:
        """Take an id.

        Raises:
            StorageError: the disk refuses.
        """
        digest = id_digest(name)
        waiting = self._waiting[digest % _PARTS]
        waiting.append(digest)
        if len(waiting) == _BUFFERED:
            self._write(digest % _PARTS)

    def _write(self, part: int) -> None:
        with disk_errors(self._folder), (self._folder / str(part)).open("ab") as file:
            self._waiting[part].tofile(file)
        del self._waiting[part][:]

    def repeated(self) -> Iterator[int]:
        """Digests of the ids that came more than once, each once.

        Raises:
            StorageError: the disk refuses.
        """
        for part, waiting in enumerate(self._waiting):
            file = self._folder / str(part)
            found = np.array(waiting, dtype=np.uint64)
            with disk_errors(self._folder):
                if file.exists():
                    found = np.concatenate([np.fromfile(file, dtype=np.uint64), found])
            found.sort()
            yield from map(int, np.unique(found[1:][found[1:] == found[:-1]]))
