"""Dataset versions on disk: immutable folders named by their content.

    <folder>/<name>/<hash>/records.jsonl   one record a line
    <folder>/<name>/<hash>/manifest.json   schema, hashes, counts, sources, licence, charter, template

Writing and reading stream; memory holds one record, and hashes of ids, which find duplicates, wait on
disk.
"""

import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from trueward.core.errors import ConfigError, DataError, nearest
from trueward.core.files import new_folder, read_json, read_jsonl, write_json, write_jsonl
from trueward.core.hashing import hash_file, hash_json, short
from trueward.data.records import Record, RecordError, from_json, kind_of, to_json
from trueward.data.split import check_fractions, prompt_key, split_of
from trueward.data.unique import UniqueIds, id_digest

__all__ = ["DatasetInfo", "DatasetVersion", "Import", "open_dataset", "write_dataset"]

SCHEMA: Final = "trueward.dataset/1"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Import(Protocol):
    """What a version states about an import (`importers.ImportResult`), once all records have come."""

    format: str
    source: dict[str, Any]

    @property
    def num_bad(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What a version states about itself besides its records.

    Args:
        licence: of the whole; empty where only records state theirs.
        charter: hash of the charter under which it was labelled.
        template: hash of the chat template, where the records depend on one.
        fractions: split name -> share, adding up to 1.
        seed: of the split.
        test_sources: sources (`meta.source`) whose records are the test split, all others the training split;
            empty splits by prompt and `fractions`.
    """

    licence: str = ""
    charter: str = ""
    template: str = ""
    fractions: Mapping[str, float] = field(default_factory=lambda: {"train": 0.9, "test": 0.1})
    seed: int = 0
    test_sources: tuple[str, ...] = ()


def _split(record: Record, info: Mapping[str, Any]) -> str:
    """The split of a record under a manifest, or what a version states about itself."""
    if sources := info.get("test_sources"):
        return "test" if record.meta.source in sources else "train"
    return split_of(prompt_key(record), info["fractions"], seed=info["seed"])


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """An opened version. `hash` covers the records, the split and what `DatasetInfo` states."""

    path: Path
    name: str
    hash: str
    manifest: Mapping[str, Any]

    def records(self, split: str | None = None) -> Iterator[Record]:
        """The records in order, streaming; of one split, or all.

        Raises:
            ConfigError: no such split.
            DataError: a line is no record; the file was changed.
        """
        fractions = self.manifest["fractions"]
        if split is not None and split not in fractions:
            raise ConfigError(f"{self.name} has no split {split!r}", remedy=nearest(split, fractions))
        return self._stream(split)

    def _stream(self, split: str | None) -> Iterator[Record]:
        for number, value in enumerate(read_jsonl(self.path / "records.jsonl"), 1):
            try:
                record = from_json(value)
            except RecordError as error:
                where = f"{self.path / 'records.jsonl'}:{number}"
                raise DataError(f"{where}: {error}", remedy="restore the version; it was changed") from error
            if split is None or _split(record, self.manifest) == split:
                yield record

    @property
    def num_records(self) -> int:
        return int(sum(self.manifest["counts"].values()))

    def verify(self) -> None:
        """Hash the records again.

        Raises:
            DataError: they are not what the manifest says.
        """
        found = hash_file(self.path / "records.jsonl")
        if found != self.manifest["records_hash"] or _version_hash(self.manifest) != self.hash:
            raise DataError(
                f"{self.path} was changed after it was written",
                value=short(found),
                expected=short(self.manifest["records_hash"]),
                remedy="restore it, or import the data again",
            )


def _version_hash(manifest: Mapping[str, Any]) -> str:
    names = ("schema", "name", "records_hash", "licence", "charter", "template", "fractions", "seed")
    stated = {name: manifest[name] for name in names}
    # Not in versions that split by prompt, whose hashes are as they were before sources could be named.
    sources = manifest.get("test_sources")
    return hash_json({**stated, "test_sources": sources} if sources else stated)


class _Counting:
    """Records on their way to disk: their JSON, with ids noted and kinds and splits counted."""

    def __init__(self, records: Iterable[Record], info: DatasetInfo, ids: UniqueIds) -> None:
        self.kinds: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self._records, self._ids = records, ids
        self._info = {"fractions": info.fractions, "seed": info.seed, "test_sources": info.test_sources}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in self._records:
            self._ids.add(record.id)
            self.kinds[kind_of(record)] += 1
            self.splits[_split(record, self._info)] += 1
            yield to_json(record)


def _check_ids(file: Path, ids: UniqueIds) -> None:
    """Refuse an id that occurs twice. The file is only read again where two digests were equal."""
    repeated = set(ids.repeated())
    found: set[str] = set()
    for row in read_jsonl(file) if repeated else ():
        name = row["id"]
        if name in found:
            raise DataError(
                "two records have one id",
                value=name,
                expected="ids that occur once in a dataset",
                remedy="give the files different names, or the rows different ids",
            )
        if id_digest(name) in repeated:
            found.add(name)


def write_dataset(
    folder: Path,
    name: str,
    records: Iterable[Record],
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    imports: Sequence[Import] = (),
    info: DatasetInfo | None = None,
) -> DatasetVersion:
    """Write a version; if one of the same content exists, that one is returned.

    Args:
        folder: parent of all datasets; the version becomes folder/name/<16 characters of its hash>.
        records: any iterable, read once; an error in it leaves nothing behind.
        sources: where the records come from, as JSON (what made them, with hashes).
        imports: the imports that `records` comes from; their sources and bad rows are stated in the manifest.
        info: licence, charter, template, split.

    Raises:
        DataError: no records, or an id that occurs twice.
        ConfigError: a name that is no file name, or unusable split fractions.
        StorageError: the disk refuses.
    """
    info = info or DatasetInfo()
    check_fractions(info.fractions)
    if not _NAME.fullmatch(name):
        raise ConfigError("a dataset's name is no file name", value=name, expected="letters, digits, . _ -")
    incoming = folder / name / f"incoming-{uuid.uuid4().hex}"
    with new_folder(incoming) as staging:
        (staging / "ids").mkdir()
        ids = UniqueIds(staging / "ids")
        counting = _Counting(records, info, ids)
        if write_jsonl(staging / "records.jsonl", counting) == 0:
            raise DataError(f"the dataset {name} has no records", expected="at least one")
        _check_ids(staging / "records.jsonl", ids)
        shutil.rmtree(staging / "ids")
        manifest = {
            "schema": SCHEMA,
            "name": name,
            "records_hash": hash_file(staging / "records.jsonl"),
            "bytes": (staging / "records.jsonl").stat().st_size,
            "counts": dict(sorted(counting.kinds.items())),
            "splits": {split: counting.splits[split] for split in info.fractions},
            "licence": info.licence,
            "charter": info.charter,
            "template": info.template,
            "fractions": dict(info.fractions),
            "seed": info.seed,
            **({"test_sources": list(info.test_sources)} if info.test_sources else {}),
            "sources": [*map(dict, sources), *({**item.source, "format": item.format} for item in imports)],
            "quarantined": sum(item.num_bad for item in imports),
        }
        digest = _version_hash(manifest)
        write_json(staging / "manifest.json", {**manifest, "hash": digest})
    path = folder / name / short(digest)
    if path.exists():
        shutil.rmtree(incoming)
    else:
        os.rename(incoming, path)
    return open_dataset(path)


def open_dataset(path: Path) -> DatasetVersion:
    """Open a version, or a dataset that has one version. Checks the size; `verify` checks the content.

    Raises:
        DataError: no version there, several, or one that is incomplete or of another schema.
    """
    if not (path / "manifest.json").is_file():
        versions = sorted(item.parent for item in path.glob("*/manifest.json"))
        if len(versions) != 1:
            raise DataError(
                f"{path} is no dataset version",
                value=[item.name for item in versions],
                expected="a folder with manifest.json, or exactly one such folder in it",
                remedy="name the version's folder",
            )
        path = versions[0]
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(f"{path / 'manifest.json'} has another schema", value=manifest, expected=SCHEMA)
    file = path / "records.jsonl"
    if not file.is_file() or file.stat().st_size != manifest["bytes"]:
        raise DataError(
            f"{file} is missing or has another size", remedy="restore it, or import the data again"
        )
    return DatasetVersion(path, manifest["name"], manifest["hash"], manifest)
