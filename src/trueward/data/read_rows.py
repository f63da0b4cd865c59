"""Rows of a file, streaming: JSON lines, JSON arrays, CSV, Parquet, plain text, and gzip of them.

What a file is, is decided by its content, since names lie. A row that cannot be read is yielded with its
fault; a file that cannot be read on raises. Memory: one row, at most `MAX_ROW_BYTES`; one row group's slice
for Parquet; the whole file, at most `MAX_OBJECT_BYTES`, for a single JSON object.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn, TextIO

from trueward.core.errors import DataError
from trueward.data.parquet_rows import parquet_values

__all__ = ["MAX_ROW_BYTES", "Fault", "Row", "read_rows"]

MAX_ROW_BYTES: Final = 8 << 20
MAX_OBJECT_BYTES: Final = 64 << 20
_SNIFF_BYTES: Final = 1 << 16
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_PROMPT_KEYS: Final = ("instructions", "prompts", "questions")
_ROW_KEYS: Final = ("data", "rows", "examples", "items", "instances")


class Fault(NamedTuple):
    """Why a row is unusable."""

    field: str
    value: object
    expected: str


class Row(NamedTuple):
    """One row: number from 1 (line, item or row), value or fault, and its text for the quarantine."""

    number: int
    value: Any
    raw: str
    fault: Fault | None = None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    remedy = "download or copy the file again"
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path} ends in the middle of its gzip stream", remedy=remedy) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged gzip: {error}", remedy=remedy) from error
    except UnicodeDecodeError as error:
        found, remedy = error.object[error.start : error.start + 8], "convert it, for example with iconv"
        raise DataError(f"{path} is not UTF-8", value=found, expected="UTF-8 text", remedy=remedy) from error
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        raise DataError(what, remedy="check the path") from error


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP
    # Closed by its reader; gzip.open is typed more widely than what "rb" gives.
    return io.BufferedReader(gzip.GzipFile(path, "rb")) if zipped else path.open("rb")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _json_value(text: str) -> tuple[Any, str]:
    """The value, or the reason why there is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except json.JSONDecodeError as error:
        return None, f"JSON; {error.msg} at character {error.pos + 1}"
    except ValueError as error:
        return None, f"JSON; {str(error)[:80]}"
    except RecursionError:
        return None, "JSON nested less deeply"


def _json_lines(path: Path, max_row_bytes: int) -> Iterator[Row]:
    number = 0
    with _open(path) as file:
        while line := file.readline(max_row_bytes + 1):
            number += 1
            if len(line) > max_row_bytes and not line.endswith(b"\n"):
                head, size = line[:200].decode(errors="backslashreplace"), len(line)
                while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                    size += len(line)
                expected = f"at most {max_row_bytes:,} bytes a line"
                yield Row(number, None, head, Fault("line", f"a line of {size:,} bytes", expected))
                continue
            body = (line.removeprefix(_BOM) if number == 1 else line).strip(b" \t\r\n")
            if not body:
                continue
            try:
                text = body.decode()
            except UnicodeDecodeError as error:
                fault = Fault("line", body[error.start : error.start + 8], "UTF-8 text")
                yield Row(number, None, body.decode(errors="backslashreplace"), fault)
                continue
            value, reason = _json_value(text)
            yield Row(number, value, text, Fault("line", text[:200], reason) if reason else None)


class _ArrayReader:
    """The items of a JSON array, decoded as their text arrives."""

    def __init__(self, path: Path, text: TextIO, max_row_bytes: int) -> None:
        self._path, self._text, self._limit = path, text, max_row_bytes
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        self._buffer = ""
        self._at = 0
        self._number = 0

    def _fail(self, what: str) -> DataError:
        where = f"{self._path}: item {self._number}" if self._number else str(self._path)
        seen = self._buffer[self._at : self._at + 80]
        remedy = "mend it, or write JSON lines"
        return DataError(f"{where} of the JSON array {what}", value=seen, remedy=remedy)

    def _too_long(self) -> DataError:
        return self._fail(f"is longer than {self._limit:,} characters, or is no JSON")

    def _more(self) -> bool:
        rest = self._buffer[self._at :]
        if len(rest) > self._limit:
            raise self._too_long()
        new = self._text.read(max(_SNIFF_BYTES, len(rest)))
        self._buffer, self._at = rest + new, 0
        return bool(new)

    def _next_character(self) -> str:
        """The next character that is no white space, not consumed; empty at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def _item(self) -> tuple[Any, str]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._fail(f"is no JSON or the file ends too early: {error.msg}") from error
                continue
            except (ValueError, RecursionError) as error:
                raise self._fail(f"is no JSON that can be read: {str(error)[:80]}") from error
            if end - self._at > self._limit:
                raise self._too_long()
            raw = self._buffer[self._at : end]
            self._at = end
            return value, raw

    def __iter__(self) -> Iterator[Row]:
        assert self._next_character() == "[", "sniffed before"
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            while True:
                self._number += 1
                self._next_character()
                value, raw = self._item()
                yield Row(self._number, value, raw)
                separator = self._next_character()
                self._at += 1
                if separator == "]":
                    break
                if separator != ",":
                    raise self._fail("is not followed by a comma or the end of the array")
        if self._next_character():
            raise self._fail("is followed by something after the end of the array")


def _json_array(path: Path, max_row_bytes: int) -> Iterator[Row]:
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from _ArrayReader(path, text, max_row_bytes)


def _json_object(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        body = file.read(MAX_OBJECT_BYTES + 1)
    if len(body) > MAX_OBJECT_BYTES:
        raise DataError(f"{path} is one JSON object over 64 MiB", remedy="write JSON lines")
    value, reason = _json_value(body.decode("utf-8-sig"))
    if reason:
        raise DataError(f"{path} is no JSON", expected=reason, remedy="mend the file or write JSON lines")
    if isinstance(value, Mapping) and len(value) == 1:
        key, items = next(iter(value.items()))
        if isinstance(items, list) and key in (*_PROMPT_KEYS, *_ROW_KEYS):
            for number, item in enumerate(items, 1):
                wrapped = {"prompt": item} if isinstance(item, str) and key in _PROMPT_KEYS else item
                yield Row(number, wrapped, json.dumps(item))
            return
    yield Row(1, value, json.dumps(value))


def _csv_rows(path: Path, max_row_bytes: int, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), max_row_bytes))
    # Bytes that are no UTF-8 become lone surrogates, which the record's own check refuses by row and field.
    with (
        _open(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield Row(number, None, "", Fault("row", f"near line {reader.line_num}", f"CSV; {error}"))
                continue
            if header is None:
                header = cells
                if len(header) == 1 and (mark := next((m for m in ";\t" if m in header[0]), "")):
                    raise DataError(
                        f"{path}: the header is one column that holds {mark!r}",
                        value=header[0],
                        expected="columns parted by commas (.csv) or tabs (.tsv)",
                        remedy="save it with commas, or give it the other ending",
                    )
                if len(set(header)) != len(header):
                    raise DataError(f"{path} has two columns of one name", value=header, remedy="rename one")
                continue
            if not cells:
                continue
            number += 1
            raw = json.dumps(cells)
            if len(cells) != len(header):
                expected = f"{len(header)} cells, as in the header"
                yield Row(number, None, raw, Fault("row", f"{len(cells)} cells", expected))
            else:
                yield Row(number, dict(zip(header, cells, strict=True)), raw)


def _text_lines(path: Path, max_row_bytes: int) -> Iterator[Row]:
    with _open(path) as file:
        number = 0
        while line := file.readline(max_row_bytes + 1):
            number += 1
            if len(line) > max_row_bytes:
                raise DataError(f"{path}:{number} is longer than {max_row_bytes:,} bytes", remedy="break it")
            text = (line.removeprefix(_BOM) if number == 1 else line).decode().strip("\r\n")
            if text.strip():
                yield Row(number, {"text": text}, text)


def _parquet(path: Path) -> Iterator[Row]:
    for number, value in enumerate(parquet_values(path), 1):
        yield Row(number, value, json.dumps(value, default=repr))


def _sniff(path: Path) -> bytes:
    with _open(path) as file:
        head = file.read(_SNIFF_BYTES)
        while head and not head.strip(b" \t\r\n") and (more := file.read(_SNIFF_BYTES)):
            head = more
    return head


def _is_one_object(head: bytes) -> bool:
    """Whether text that starts with `{` is one object (over several lines, or around the rows)."""
    first, _, rest = head.partition(b"\n")
    if len(head) == _SNIFF_BYTES and not rest:
        return False
    value, reason = _json_value(first.decode(errors="replace"))
    if reason:
        return not rest.lstrip().startswith(b"{") and len(first) < 200
    wraps = isinstance(value, dict) and len(value) == 1 and next(iter(value)) in (*_PROMPT_KEYS, *_ROW_KEYS)
    return wraps and not rest.strip()


def _layout(path: Path, max_row_bytes: int) -> tuple[str, Callable[[], Iterator[Row]]]:
    head = _sniff(path)
    body = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if not body:
        raise DataError(f"{path} is empty", expected="at least one row", remedy="check its source")
    if body.startswith(b"PAR1"):
        return "Parquet", lambda: _parquet(path)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16", expected="UTF-8 text", remedy="convert it with iconv")
    if suffix in (".csv", ".tsv"):
        return suffix[1:].upper(), lambda: _csv_rows(path, max_row_bytes, "\t" if suffix == ".tsv" else ",")
    if suffix == ".txt":
        return "text, one record a line", lambda: _text_lines(path, max_row_bytes)
    if body.startswith(b"["):
        return "JSON array", lambda: _json_array(path, max_row_bytes)
    if body.startswith(b"{") and _is_one_object(body):
        return "JSON object", lambda: _json_object(path)
    return "JSON lines", lambda: _json_lines(path, max_row_bytes)


def read_rows(path: Path, *, max_row_bytes: int = MAX_ROW_BYTES) -> tuple[str, Iterator[Row]]:
    """What the file is in words, and its rows; empty lines are no rows.

    Args:
        path: an ordinary file; gzip is recognised by its content.
        max_row_bytes: longest row, in bytes (characters for items of a JSON array, cells of CSV).

    Raises:
        DataError: missing, empty, damaged, not text; also later, while the rows are read.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder", expected="a file", remedy="name the file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist", remedy="check the path")
    with _reading(path):
        words, start = _layout(path, max_row_bytes)
        with path.open("rb") as file:
            zipped = ", gzip" if file.read(2) == _GZIP else ""

    def rows() -> Iterator[Row]:
        with _reading(path):
            yield from start()

    return words + zipped, rows()
