"""Files that a recipe names: paths and folders become a list of data files, each with a name of its own."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trueward.core.errors import ConfigError, DataError
from trueward.data.records import Record

__all__ = ["data_files", "renamed", "short_names"]

# A model or data set of the hub, where nothing of that name is here.
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def data_files(given: tuple[Path, ...] | Path | None, *, key: str) -> list[Path]:
    """The files behind a path, a list of paths, or a folder (every data file in it, by name).

    Args:
        key: of the recipe, for the message.

    Raises:
        ConfigError: nothing is named.
        DataError: a path that does not exist, or a folder without data files.
    """
    paths = [given] if isinstance(given, Path) else list(given or ())
    if not paths:
        raise ConfigError(f"{key} is missing", remedy=f"name a file or a folder: {key}=...")
    found: list[Path] = []
    for path in paths:
        _refuse_hub_id(path, key=key)
        files = _in_folder(path) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise DataError(
                f"{path} {'holds no data file' if path.is_dir() else 'does not exist'}",
                expected=f"a file, or a folder with files ending in {', '.join(_SUFFIXES)}, also .gz",
                remedy=f"check {key}",
            )
        found += files
    return found


def _refuse_hub_id(path: Path, *, key: str) -> None:
    name = path.as_posix()
    if path.exists() or path.parent.is_dir() or not _HUB_ID.fullmatch(name):
        return
    if name.removesuffix(".gz").endswith(_SUFFIXES):
        return
    raise DataError(
        f"{name} is no file or folder here; if it is a data set of the hub, it has to be downloaded first",
        remedy=f"`hf download {name} --repo-type dataset --local-dir FOLDER`, then {key}=FOLDER, where the "
        "data files are",
    )


def _in_folder(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.name.removesuffix(".gz").endswith(_SUFFIXES) and p.is_file()
    )


def short_names(files: list[Path]) -> list[str]:
    """A name for each file: its own, with that of its folder before it where two are called the same.

    Raises:
        DataError: the same file twice.
    """
    repeated = Counter(file.name for file in files)
    names = [
        f"{file.resolve().parent.name}-{file.name}" if repeated[file.name] > 1 else file.name
        for file in files
    ]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"{name} is named twice", remedy="name each file once, or give the files different names"
            )
    return names


def renamed(
    records: Iterable[Record], file: Path, name: str, *, one_of_many: bool = False
) -> Iterator[Record]:
    """The records of `file` under ids that start with its name, where that is not its own.

    Args:
        one_of_many: other files come beside it; then ids that the rows state start with its name too, because
            rows of several files may state the same ones.
    """
    prefix, stem = name.removesuffix(file.name), file.name.split(".")[0]
    for record in records:
        stated = one_of_many and not prefix and not record.id.startswith(stem)
        start = f"{stem}/" if stated else prefix
        yield replace(record, id=f"{start}{record.id}") if start else record
