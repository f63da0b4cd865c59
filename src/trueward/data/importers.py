"""Import: a file of any known format becomes records; bad rows go to quarantine, too many fail the import.

Streaming: one row in memory at a time, besides a hash of every id that a file states itself.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from trueward.core.errors import ConfigError, DataError, shown
from trueward.core.hashing import hash_file
from trueward.data.convert import convert
from trueward.data.formats import Format, detect, format_named
from trueward.data.quarantine import Quarantine
from trueward.data.read_rows import MAX_ROW_BYTES, Fault, Row, read_rows
from trueward.data.records import Meta, Record, RecordError
from trueward.data.unique import id_digest

__all__ = ["ImportResult", "import_file"]

_SAMPLE_ROWS: Final = 64
_HOPELESS_ROWS: Final = 1000
_COLUMNS_SHOWN: Final = 12


class ImportResult:
    """An import under way: iterate over it once; the counts are final when the iteration has ended.

    Args:
        detected: what the file was taken for, in words, to be shown to the user.
        format: the name of that format.
        kind: the kind of record it gives.
        source: file name, size in bytes and SHA-256 of the file, for the dataset's manifest.
        num_rows, num_records, num_bad: counts so far.
    """

    def __init__(
        self,
        path: Path,
        *,
        words: str,
        form: Format,
        kind: str,
        unread: Sequence[str],
        rows: Iterator[Row],
        meta: Meta,
        quarantine: Quarantine,
        max_bad: float,
    ) -> None:
        seen = "" if kind == form.kind else f", each seen as a {kind}"
        kept = f"; not read, kept in meta.extra: {_listed(unread)}" if unread else ""
        self.detected = f"{path.name}: {words}; {form.words} -> {form.kind} records{seen}{kept}"
        self.format, self.kind = form.name, kind
        self.source: dict[str, Any] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
        }
        self.num_rows = self.num_records = 0
        self._path, self._form, self._rows, self._meta = path, form, rows, meta
        self._quarantine, self._max_bad = quarantine, max_bad
        self._ids: set[int] = set()
        self._stem = path.name.split(".")[0]

    @property
    def num_bad(self) -> int:
        return self._quarantine.count

    def _id(self, value: Mapping[str, Any], number: int) -> str:
        stated = value.get("id")
        if stated is None or stated == "":
            return f"{self._stem}-{number}"
        if isinstance(stated, bool) or not isinstance(stated, str | int):
            raise RecordError("id", stated, "a string or an integer")
        try:
            text = str(stated)
            key = id_digest(text)
        except ValueError as error:
            raise RecordError("id", "an id that is no text", "valid UTF-8 or a small integer") from error
        if key in self._ids:
            raise RecordError("id", stated, "an id that no earlier row has", what="duplicate id")
        self._ids.add(key)
        return text

    def _record(self, row: Row) -> Record:
        if row.fault is not None:
            raise RecordError(*row.fault)
        if not isinstance(row.value, Mapping):
            raise RecordError("row", row.value, "an object with named columns")
        name = self._id(row.value, row.number)
        extra = {
            key: item for key, item in row.value.items() if key not in self._form.columns and key != "id"
        }
        return convert(self._form.read(row.value, name, replace(self._meta, extra=extra)), self.kind)

    def _hopeless(self) -> bool:
        """Whether most of a long beginning is bad: the file is something else."""
        return self.num_rows >= _HOPELESS_ROWS and self.num_bad > self.num_rows * max(0.5, self._max_bad)

    def __iter__(self) -> Iterator[Record]:
        try:
            for row in self._rows:
                self.num_rows += 1
                try:
                    record = self._record(row)
                except RecordError as error:
                    reason = error.what if error.what != f"{error.field} is wrong" else ""
                    expected = f"{error.expected} ({reason})" if reason else str(error.expected)
                    self._quarantine.add(row.number, Fault(error.field, error.value, expected), row.raw)
                    if self._hopeless():
                        break
                    continue
                self.num_records += 1
                yield record
        finally:
            self._quarantine.close()
        self._check()

    def _check(self) -> None:
        if self.num_rows == 0:
            raise DataError(f"{self._path} holds no rows", expected="at least one")
        if self.num_bad > self._max_bad * self.num_rows or self.num_records == 0:
            raise DataError(
                f"{self._path}: {self.num_bad:,} of the {self.num_rows:,} rows read are bad "
                f"({self.num_bad / self.num_rows:.1%}), first {self._quarantine.first}",
                expected=f"at most {self._max_bad:.1%} bad rows",
                remedy=f"see {self._quarantine.path}, mend the file, or raise max_bad",
            )

    def summary(self) -> str:
        """The counts in a sentence, once the iteration has ended."""
        bad = f"{self.num_bad:,} bad rows are in {self._quarantine.path}" if self.num_bad else "no bad rows"
        return f"{self.num_records:,} of {self.num_rows:,} rows imported, {bad}"


def import_file(
    path: Path,
    *,
    quarantine: Path,
    format: str = "auto",
    kind: str | None = None,
    meta: Meta | None = None,
    max_bad: float = 0.01,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> ImportResult:
    """Open a file for import: find out what it is; the rows are read when the result is iterated over.

    Args:
        path: JSON lines, JSON, CSV, TSV, Parquet or text, also as gzip.
        quarantine: where bad rows go; replaced if it exists, not written if there are none.
        format: a name in `formats.FORMATS`, or auto.
        kind: convert every record to this kind (prompt, demonstration, comparison).
        meta: source, licence, consent and so on for every record.
        max_bad: largest share of bad rows in [0, 1]; more fail the import at its end.
        max_row_bytes: longest row.

    Raises:
        DataError: the file cannot be read, holds nothing, or looks like no known format.
        ConfigError: an unknown format or kind, or a share outside [0, 1].
    """
    if not 0 <= max_bad <= 1:
        raise ConfigError("max_bad is no share", value=max_bad, expected="a number in [0, 1]")
    words, rows = read_rows(path, max_row_bytes=max_row_bytes)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    readable = [row.value for row in sample if isinstance(row.value, Mapping)]
    if format != "auto":
        form = format_named(format)
    elif readable:
        form = _detected(path, readable)
    elif not sample:
        raise DataError(f"{path} holds no rows", expected="at least one")
    else:
        first = sample[0].fault or Fault("row", sample[0].value, "an object with named columns")
        raise DataError(
            f"{path}: none of its first {len(sample)} rows can be used, row {sample[0].number}",
            value=first.value,
            expected=first.expected,
            remedy="check what the file is: JSON and Parquet are known by their content, "
            "CSV, TSV and text by a name that ends in .csv, .tsv or .txt",
        )
    meta = meta or Meta(source=path.name)
    return ImportResult(
        path,
        words=f"{words}{_style(readable)}",
        form=form,
        kind=kind or form.kind,
        unread=sorted({shown(key) for row in readable for key in row if _is_unread(form, key)}),
        rows=itertools.chain(sample, rows),
        meta=meta,
        quarantine=Quarantine(quarantine, path),
        max_bad=max_bad,
    )


def _is_unread(form: Format, column: str) -> bool:
    return column != "id" and column not in form.columns | form.verdicts


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:_COLUMNS_SHOWN])
    return f"{few} and {len(names) - _COLUMNS_SHOWN} more" if len(names) > _COLUMNS_SHOWN else few


def _style(rows: list[Mapping[str, Any]]) -> str:
    """In words, whether prompts and answers are strings or messages."""
    fields = (
        "prompt",
        "chosen",
        "completion",
        "messages",
        "conversations",
        "input",
        "text",
        "instruction",
        "question",
    )
    values = [row[name] for row in rows[:1] for name in fields if name in row]
    if not values:
        return ""
    return (
        ", conversational"
        if any(isinstance(value, list | dict) for value in values)
        else ", standard (strings)"
    )


def _detected(path: Path, rows: list[Mapping[str, Any]]) -> Format:
    try:
        return detect(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
