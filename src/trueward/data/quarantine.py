"""Where bad rows go: a JSON-lines file with file, row, field, value, expectation and the row itself.

Written beside its final name and renamed when the import ends, whether it succeeds or not, so that what stood
there is replaced whole or not at all.
"""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from trueward.core.errors import StorageError, shown
from trueward.data.read_rows import Fault

__all__ = ["Quarantine"]


class Quarantine:
    """Counts and keeps bad rows; the file exists only if there are any."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self.count = 0
        self.first = ""
        self._source = source
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file: TextIO | None = None

    def add(self, number: int, fault: Fault, raw: str) -> None:
        """Keep one bad row.

        Raises:
            StorageError: the disk refuses.
        """
        self.count += 1
        if self.count == 1:
            self.first = f"row {number}: {fault.field} is {shown(fault.value)}, expected {fault.expected}"
        entry: dict[str, Any] = {
            "file": str(self._source),
            "row": number,
            "field": fault.field,
            "value": shown(fault.value),
            "expected": fault.expected,
            "raw": raw,
        }
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("w", encoding="utf-8", newline="")
            # ASCII, because a raw row may hold what is no UTF-8.
            self._file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        what = f"cannot write {self.path}: {error.strerror or error}"
        return StorageError(what, remedy="free space or name another quarantine file")

    def close(self) -> None:
        """Publish the file under its name.

        Raises:
            StorageError: the disk refuses; what stood there is untouched.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise self._refused(error) from error
