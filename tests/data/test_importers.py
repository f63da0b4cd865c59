"""Files: layouts, bad input in one clear sentence, quarantine, threshold, constant memory, fuzz."""

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.test_formats import CASES
from trueward.core.errors import ConfigError, DataError, StorageError
from trueward.data.importers import ImportResult, import_file
from trueward.data.records import Comparison, Record, Text, from_json, to_json

ROWS = [{"prompt": f"q {n}\u2028\r\n", "chosen": 'a,\n"b"', "rejected": f"{n}é"} for n in range(300)]


def opened(file: Path, **options: Any) -> ImportResult:
    return import_file(file, quarantine=file.parent / "bad.jsonl", **options)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def encoded(name: str, tmp_path: Path) -> Path:
    path = tmp_path / name
    plain = name.removesuffix(".gz")
    if plain == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=64)
        return path
    if plain.endswith((".csv", ".tsv")):
        target = tmp_path / "plain"
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if plain.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        return write(path, target.read_bytes())
    text = {
        "rows.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "crlf.jsonl": "\r\n\r\n".join(json.dumps(row) for row in ROWS) + "\r\n",
        "bom.jsonl": "\ufeff" + "".join(json.dumps(row) + "\n" for row in ROWS),
        "lines.json": "".join(json.dumps(row) + "\n" for row in ROWS),
        "array.json": json.dumps(ROWS, ensure_ascii=False),
        "pretty.json": " \n" + json.dumps(ROWS, indent=4),
        "wrapped.json": json.dumps({"data": ROWS}),
        "wrapped pretty.json": json.dumps({"data": ROWS}, indent=2),
    }[plain]
    return write(path, text.encode())


@pytest.mark.parametrize(
    "name",
    [
        "rows.jsonl",
        "rows.jsonl.gz",
        "crlf.jsonl",
        "bom.jsonl",
        "lines.json",
        "array.json",
        "pretty.json.gz",
        "wrapped.json",
        "wrapped pretty.json",
        "rows.csv",
        "rows.csv.gz",
        "rows.tsv",
        "rows.parquet",
    ],
)
def test_layouts_give_the_same_records(tmp_path: Path, name: str) -> None:
    result = opened(encoded(name, tmp_path))
    found = [(r.prompt[0].content, r.chosen, r.rejected) for r in result if isinstance(r, Comparison)]
    assert found == [tuple(row.values()) for row in ROWS]
    assert (result.num_rows, result.num_records, result.num_bad) == (300, 300, 0)
    assert not (tmp_path / "bad.jsonl").exists()
    assert len(result.source["sha256"]) == 64 and "no bad rows" in result.summary()


def test_what_gzip_is_called_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert [r.text for r in opened(file) if isinstance(r, Text)] == ["a"]


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"text\n", "holds no rows"),
        ("a.jsonl", gzip.compress(GOOD * 9000, mtime=0)[:-30], "ends in the middle of its gzip"),
        ("a.jsonl", gzip.compress(GOOD * 9, mtime=0)[:-8] + b"\0" * 8, "damaged gzip"),
        ("a.jsonl", b'{"colour": 1}\n', "no known format has these columns.*colour"),
        ("a.jsonl", b"once upon a time\n", "none of its first 1 rows"),
        ("a.jsonl", b'{"text": "\xff"}\n', "UTF-8"),
        ("a.jsonl", b'{"text": "a\x00b"}\n', "JSON"),
        ("a.jsonl", b"[" * 100_000, "item 1"),
        ("a.jsonl", b'{"text":' + b"[" * 100_000 + b"\n", "nested less deeply"),
        ("a.json", b'[{"text": "a"}, {"text": ', "item 2 .*ends too early"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "not followed by a comma"),
        ("a.json", b'[{"text": "a"}] tail', "after the end"),
        ("a.json", b'[{"text": "\xff"}]', "not UTF-8"),
        ("a.json", b'{\n "data": [{"text": "a"}\n', "no JSON"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
        ("a.csv", b"text,text\na,b\n", "two columns of one name"),
        ("a.txt", b"ok\n\xff\n", "not UTF-8"),
        ("a.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "Parquet"),
        ("a.jsonl", b'{"text": 1}\n', "100.0%.*row 1: text is 1, expected a string"),
        ("a.jsonl", b"1\n2\n", "named columns"),
        (
            "a.jsonl",
            GOOD + b'{"text": "' + b"x" * 10_000_000 + b'"}\n',
            "a line of 10,000,013 bytes.*8,388,608 bytes a line",
        ),
        ("a.json", b'[{"text": "' + b"x" * 10_000_000 + b'"}]', "longer than 8,388,608"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "JSON"),
        ("a.jsonl", b'{"text": "a", "n": NaN}\n', "NaN is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files_end_in_one_clear_sentence(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(opened(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        opened(tmp_path)


def mixed(tmp_path: Path, good: int, bad: int) -> Path:
    lines = [json.dumps({"text": f"text {n}"}) for n in range(good)] + ['{"text": ""}'] * bad
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize(
    ("good", "bad", "passes"), [(99, 1, True), (990, 10, True), (989, 11, False), (98, 1, False)]
)
def test_threshold_is_exact(tmp_path: Path, good: int, bad: int, passes: bool) -> None:
    result = opened(mixed(tmp_path, good, bad))
    if passes:
        assert len(list(result)) == good and f"{bad} bad rows are in" in result.summary()
    else:
        with pytest.raises(
            DataError, match=rf"{bad} of the {good + bad:,} rows read are bad.*first row {good + 1}"
        ):
            list(result)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == bad == result.num_bad


def test_threshold_can_be_changed_but_is_a_share(tmp_path: Path) -> None:
    assert len(list(opened(mixed(tmp_path, 5, 5), max_bad=0.5))) == 5
    with pytest.raises(ConfigError, match="no share"):
        opened(mixed(tmp_path, 5, 5), max_bad=5)


def test_a_hopeless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    result = opened(mixed(tmp_path, 1, 5000))
    with pytest.raises(DataError, match="999 of the 1,000 rows read"):
        list(result)


def test_duplicate_ids_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": n % 3, "text": str(n)}) + "\n" for n in range(4)))
    with pytest.raises(DataError, match="duplicate id"):
        list(opened(file))
    assert [r.id for r in opened(file, max_bad=0.25)] == ["0", "1", "2"]


def test_csv_rows_with_faults(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,n\ngood,1\nshort\n"bad"quote,1\n\xff,1\n"two\nlines",1\n"open')
    result = opened(file, max_bad=0.9)
    assert [r.text for r in result if isinstance(r, Text)] == ["good", "two\nlines"]
    entries = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["field"] for entry in entries] == ["row", "row", "text", "row"]


def test_quarantine_of_an_earlier_import_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("old")
    iterator = iter(opened(mixed(tmp_path, 99, 1)))
    next(iterator)
    assert (tmp_path / "bad.jsonl").read_text() == "old"
    list(iterator)
    assert '"row": 100' in (tmp_path / "bad.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "mixed.jsonl"]


@pytest.mark.parametrize("name", ["folder", "file/bad.jsonl"])
def test_a_quarantine_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(StorageError, match=r"cannot write.*another quarantine file"):
        list(import_file(mixed(tmp_path, 99, 1), quarantine=tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "mixed.jsonl"]


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, layout: str) -> None:
    peaks = []
    for count in (6_000, 12_000):
        lines = [json.dumps({"text": f"{n} " + "x" * 400}) for n in range(count)]
        file = tmp_path / "big.json"
        file.write_text("\n".join(lines) if layout == "lines" else "[" + ",".join(lines) + "]")
        del lines
        tracemalloc.start()
        assert sum(1 for _ in opened(file)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The second file is 2.5 MB longer. Hashing holds two pieces of 1 MiB, reading much less.
    assert peaks[1] - peaks[0] < 100_000 and peaks[1] < 3_000_000


def is_sound(file: Path, **options: Any) -> list[Record]:
    """The promise under fuzz: records that survive a round trip, or a DataError, and nothing else."""
    records: list[Record] = []
    try:
        for record in opened(file, max_bad=1.0, **options):
            records.append(record)
    except DataError as error:
        assert "\n" not in str(error)
    for record in records:
        assert from_json(json.loads(json.dumps(to_json(record), ensure_ascii=False).encode())) == record
    return records


starts = st.sampled_from(
    [b"", b"[", b"{", b'{"text": "', b"PAR1", b"\x1f\x8b\x08", b"\xef\xbb\xbf", b"text,n\n"]
)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(
    start=starts,
    data=st.binary(max_size=300),
    name=st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.txt", "f.parquet"]),
)
def test_any_bytes(tmp_path: Path, start: bytes, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(start + data)
    is_sound(tmp_path / name)


leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
value = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "response", "steps", "text"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
columns = sorted(
    {"prompt", "chosen", "rejected", "messages", "conversations", "instruction", "output", "input", "text"}
)
more = [
    "completion",
    "completions",
    "label",
    "labels",
    "question",
    "answer",
    "history",
    "margin",
    "id",
    "kto_tag",
    "rating",
]


@fuzz
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(columns + more), value, max_size=5) | value, max_size=4),
    array=st.booleans(),
)
def test_any_rows(tmp_path: Path, rows: list[Any], array: bool) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps(rows) if array else "\n".join(json.dumps(row) for row in rows))
    is_sound(file)


@fuzz
@given(
    case=st.sampled_from(CASES),
    changes=st.dictionaries(st.integers(0, 9), value, min_size=1, max_size=3),
    drop=st.booleans(),
)
def test_any_value_in_a_row_of_any_format(
    tmp_path: Path, case: tuple[str, dict[str, Any], Any], changes: dict[int, Any], drop: bool
) -> None:
    """A row of every known format with some of its fields replaced, or taken out."""
    name, row = case[0], dict(case[1])
    for number, new in changes.items():
        key = sorted(row)[number % len(row)]
        row[key] = new
        if drop and len(row) > 1:
            del row[key]
    file = tmp_path / "f.jsonl"
    file.write_text(json.dumps(row) + "\n")
    is_sound(file)
    is_sound(file, format=name)


def test_csv_with_other_marks_says_so(tmp_path: Path) -> None:
    for name, header in (("a.csv", "prompt;completion;label"), ("b.csv", "prompt\tcompletion")):
        (tmp_path / name).write_text(f"{header}\nx\n")
        with pytest.raises(DataError, match="the header is one column"):
            import_file(tmp_path / name, quarantine=tmp_path / "bad.jsonl")
    (tmp_path / "c.jsonl").write_text("prompt,completion\nx,y\n")
    with pytest.raises(DataError, match="CSV, TSV and text by a name"):
        import_file(tmp_path / "c.jsonl", quarantine=tmp_path / "bad.jsonl")
