"""Dataset versions: named by content, written whole or not at all, split without leaks."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueward.core.errors import ConfigError, DataError
from trueward.data.dataset import DatasetInfo, open_dataset, write_dataset
from trueward.data.importers import import_file
from trueward.data.records import Comparison, Demonstration, Message, Record, Text
from trueward.data.split import prompt_key


def records(count: int = 50) -> Iterator[Record]:
    for n in range(count):
        prompt = (Message("user", f"question {n // 2}"),)
        yield Comparison(id=f"c{n}", prompt=prompt, chosen="a", rejected="b")
        yield Demonstration(id=f"d{n}", messages=(*prompt, Message("assistant", "a\u2028b")))


def test_write_open_read(tmp_path: Path) -> None:
    version = write_dataset(tmp_path, "talk", records(), sources=[{"made by": "hand"}])
    assert version.path == tmp_path / "talk" / version.hash[:16]
    again = open_dataset(tmp_path / "talk")
    assert again == version and list(again.records()) == list(records())
    again.verify()
    assert again.manifest["counts"] == {"comparison": 50, "demonstration": 50} and again.num_records == 100
    assert sum(again.manifest["splits"].values()) == 100 and again.manifest["sources"] == [
        {"made by": "hand"}
    ]


def test_same_content_is_the_same_version_and_anything_else_another(tmp_path: Path) -> None:
    first = write_dataset(tmp_path, "talk", records())
    assert write_dataset(tmp_path, "talk", records(), sources=[{"again": True}]) == first
    assert write_dataset(tmp_path / "elsewhere", "talk", records()).hash == first.hash
    others = [
        write_dataset(tmp_path, "talk", records(49)),
        write_dataset(tmp_path, "talk", records(), info=DatasetInfo(seed=1)),
        write_dataset(tmp_path, "talk", records(), info=DatasetInfo(charter="c")),
    ]
    assert len({first.hash, *(item.hash for item in others)}) == 4
    assert len(list((tmp_path / "talk").iterdir())) == 4
    with pytest.raises(DataError, match="exactly one such folder"):
        open_dataset(tmp_path / "talk")


def test_splits_share_no_prompt_and_lose_nothing(tmp_path: Path) -> None:
    info = DatasetInfo(fractions={"train": 0.5, "validation": 0.2, "test": 0.3})
    version = write_dataset(tmp_path, "talk", records(200), info=info)
    parts = {name: list(version.records(name)) for name in info.fractions}
    assert {name: len(part) for name, part in parts.items()} == version.manifest["splits"]
    assert sum(map(len, parts.values())) == 400 and all(parts.values())
    keys = [{prompt_key(record) for record in part} for part in parts.values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        version.records("tests")


def test_changes_are_noticed(tmp_path: Path) -> None:
    version = write_dataset(tmp_path, "talk", records())
    file = version.path / "records.jsonl"
    text = file.read_text()
    file.write_text(text.replace("question 3", "question 4"))
    with pytest.raises(DataError, match="was changed"):
        open_dataset(version.path).verify()
    file.write_text(text.replace('"user"', '"boss"', 1))
    with pytest.raises(DataError, match=r"records.jsonl:1: .*boss"):
        list(open_dataset(version.path).records())
    file.write_text(text + "\n")
    with pytest.raises(DataError, match="another size"):
        open_dataset(version.path)
    file.write_text(text)
    manifest = json.loads((version.path / "manifest.json").read_text())
    (version.path / "manifest.json").write_text(json.dumps({**manifest, "charter": "another"}))
    with pytest.raises(DataError, match="was changed"):
        open_dataset(version.path).verify()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Record]:
        yield from records()
        raise DataError("the source broke")

    twice = [Text(id="a", text="x"), Text(id="b", text="x"), Text(id="a", text="y")]
    for source, message in ((broken(), "broke"), (twice, "two records have one id"), ([], "no records")):
        with pytest.raises(DataError, match=message):
            write_dataset(tmp_path, "talk", source)
    assert list((tmp_path / "talk").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\n"])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no file name"):
        write_dataset(tmp_path, name, records())


def test_an_import_is_stated_in_the_manifest(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"text": "x" * (n != 5)}) + "\n" for n in range(200)))
    imported = import_file(file, quarantine=tmp_path / "bad.jsonl")
    version = write_dataset(
        tmp_path / "data", "texts", imported, imports=[imported], info=DatasetInfo(licence="MIT")
    )
    assert version.manifest["quarantined"] == 1 and version.num_records == 199
    (source,) = version.manifest["sources"]
    assert (source["file"], source["format"]) == ("in.jsonl", "trl-text") and len(source["sha256"]) == 64


def test_memory_is_flat_but_for_ids(tmp_path: Path) -> None:
    def texts(count: int) -> Iterator[Record]:
        return (Text(id=f"t{n}", text=f"{n} " + "word " * 40) for n in range(count))

    peaks = []
    for count in (2_000, 8_000):
        tracemalloc.start()
        version = write_dataset(tmp_path, f"t{count}", texts(count))
        assert sum(1 for _ in version.records()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 6,000 more records of 300 bytes would be 1.8 MB; an id takes about 90 bytes.
    assert peaks[1] - peaks[0] < 6_000 * 150
