"""The data stage: files or the testbed become immutable data set versions; stages read their split there."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console

from trueward.core.errors import ConfigError, DataError, StorageError
from trueward.core.hashing import short
from trueward.data.dataset import DatasetInfo, DatasetVersion, open_dataset, write_dataset
from trueward.data.export import export_file
from trueward.data.importers import ImportResult, import_file
from trueward.data.records import Comparison, Demonstration, Message, Meta, Prompt, Record
from trueward.data.split import prompt_key
from trueward.pipeline.sampling import draw, prompt_ids
from trueward.pipeline.workspace import Workspace
from trueward.testbed import compare_replies, make_world, prompts
from trueward.testbed import demonstrations as simulated_demonstrations

__all__ = [
    "FeedbackData",
    "data",
    "demonstrations",
    "export_command",
    "import_command",
    "pairs",
    "test_prompts",
    "train_prompts",
]

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_FRACTIONS = ("train", "test")
R = TypeVar("R", bound=Record)


class FeedbackData(NamedTuple):
    """The records of a stage. `records` are the registry ids of the data set."""

    name: str
    hash: str
    train: list[Any]
    test: list[Any]
    records: tuple[str, ...]


def _files(workspace: Workspace) -> list[Path]:
    given = workspace.recipe.data.path
    if given is None:
        raise ConfigError("data.path is missing", remedy="name a file or a folder: data.path=...")
    paths = [given] if isinstance(given, Path) else list(given)
    found = [file for path in paths for file in (_in_folder(path) if path.is_dir() else [path])]
    if not found:
        raise DataError(
            f"{paths[0]} holds no data file", expected=f"files ending in {', '.join(_SUFFIXES)}, also .gz"
        )
    return found


def _in_folder(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.name.removesuffix(".gz").endswith(_SUFFIXES) and p.is_file()
    )


def _info(workspace: Workspace, *, test: float, licence: str) -> DatasetInfo:
    return DatasetInfo(
        licence=licence,
        charter=workspace.charter.hash,
        fractions={"train": 1 - test, "test": test},
        seed=workspace.recipe.seed,
    )


def _record(workspace: Workspace, version: DatasetVersion) -> str:
    charter = workspace.charter
    parent = workspace.registry.put(
        "charter", {"name": charter.name, "hash": charter.hash, "charter": charter.body()}
    )
    return workspace.registry.put("dataset", {"name": version.name, "hash": version.hash}, [parent])


def data(workspace: Workspace) -> None:
    """Make the data sets that depend on no model: imported files, or the testbed's."""
    (_import_files if workspace.recipe.data.source == "files" else _simulate)(workspace)


def _import_files(workspace: Workspace) -> None:
    section, folder = workspace.recipe.data, workspace.out / "data"
    if (folder / "feedback").is_dir() and not workspace.resume:
        raise StorageError(
            f"{folder / 'feedback'} exists already",
            remedy="choose another `out`, or pass --resume to use what is there",
        )
    imports: list[ImportResult] = []
    for file in _files(workspace):
        quarantine = folder / "quarantine" / f"{file.name}.jsonl"
        meta = Meta(source=file.name, licence=section.licence)
        imports.append(
            import_file(
                file, quarantine=quarantine, format=section.format, meta=meta, max_bad=section.max_bad
            )
        )
    info = _info(workspace, test=section.test_share, licence=section.licence)
    version = write_dataset(folder, "feedback", chain.from_iterable(imports), imports=imports, info=info)
    for item in imports:
        workspace.say(f"{item.detected}: {item.summary()}")
    workspace.say(
        f"data set feedback {short(version.hash)}: {version.num_records:,} records, "
        f"{version.manifest['splits']}"
    )
    _record(workspace, version)


def _simulate(workspace: Workspace) -> None:
    amounts, folder, seed = workspace.recipe.testbed, workspace.out / "data", workspace.seed("testbed")
    world = make_world()
    source = [{"made_by": "trueward.testbed", "seed": seed}]
    made: list[tuple[str, Iterable[Record], float]] = [
        ("demonstrations", _unique(simulated_demonstrations(world, amounts.demonstrations, seed)), 0.05),
        ("prompts", prompts(world, amounts.prompts, held_out=False, seed=seed), 0.0),
        ("held-out", prompts(world, workspace.recipe.eval.prompts, held_out=True, seed=seed), 1.0),
    ]
    for name, records, test in made:
        info = _info(workspace, test=test, licence="Apache-2.0")
        version = write_dataset(folder, name, records, sources=source, info=info)
        workspace.say(f"data set {name} {short(version.hash)}: {version.num_records:,} records")
        _record(workspace, version)


def _unique(records: Iterable[R]) -> Iterator[R]:
    """Records without exact repeats, which the simulation draws now and then; they carry no information."""
    seen: set[str] = set()
    for record in records:
        if record.id not in seen:
            seen.add(record.id)
            yield record


def _open(workspace: Workspace, name: str) -> DatasetVersion:
    folder = workspace.out / "data" / name
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist", remedy="run the data stage first: stages=[data]")
    version = open_dataset(folder)
    version.verify()
    return version


def _limited(workspace: Workspace, version: DatasetVersion, split: str) -> list[Record]:
    records = list(version.records(split))
    limit = workspace.recipe.data.limit
    if limit is None:
        return records
    return records[: limit if split == "train" else max(10, limit // 10)]


def _as_demonstration(record: Record) -> Demonstration | None:
    if isinstance(record, Demonstration):
        return record
    if isinstance(record, Comparison):
        messages = (*record.prompt, Message("assistant", record.chosen))
        return Demonstration(id=record.id, messages=messages, meta=record.meta)
    return None


def _feedback(
    workspace: Workspace, version: DatasetVersion, train: list[Any], test: list[Any], what: str
) -> FeedbackData:
    if not train:
        raise DataError(
            f"the training split of data set {version.name} holds no {what}",
            value=dict(version.manifest["counts"]),
            remedy="give data with demonstrations or comparisons",
        )
    return FeedbackData(version.name, version.hash, train, test, (_record(workspace, version),))


def demonstrations(workspace: Workspace) -> FeedbackData:
    """Demonstrations to imitate; where the data holds only comparisons, their chosen answers.

    Raises:
        DataError: no such data.
    """
    version = _open(workspace, "demonstrations" if workspace.recipe.data.source == "testbed" else "feedback")
    found: dict[str, list[Demonstration]] = {}
    for split in _FRACTIONS:
        records = _limited(workspace, version, split)
        given = [record for record in records if isinstance(record, Demonstration)]
        found[split] = given or [d for d in map(_as_demonstration, records) if d is not None]
    return _feedback(workspace, version, found["train"], found["test"], "demonstration")


def pairs(workspace: Workspace) -> FeedbackData:
    """Comparisons. On the testbed the SFT model's own replies are compared, once, when first asked for.

    Raises:
        DataError: the data holds no comparison.
    """
    if workspace.recipe.data.source == "testbed":
        version = _simulated_pairs(workspace)
    else:
        version = _open(workspace, "feedback")
    train, test = (
        [r for r in _limited(workspace, version, split) if isinstance(r, Comparison)] for split in _FRACTIONS
    )
    return _feedback(workspace, version, train, test, "comparison")


def _simulated_pairs(workspace: Workspace) -> DatasetVersion:
    folder = workspace.out / "data" / "comparisons"
    if folder.is_dir():
        return _open(workspace, "comparisons")
    asked = _open(workspace, "prompts")
    policy = workspace.load("sft")
    records = [record for record in asked.records() if isinstance(record, Prompt)]
    settings = workspace.recipe.eval
    _, groups = prompt_ids(policy, records, max_tokens=workspace.recipe.data.max_tokens)
    with workspace.bar("feedback", 2 * len(groups)) as bar:
        drawn = draw(
            policy,
            groups,
            max_new_tokens=settings.max_new_tokens,
            temperature=1.0,
            num_completions=2,
            seed=workspace.seed("feedback"),
            bar=bar,
        )
    replies = list(zip(drawn.texts[::2], drawn.texts[1::2], strict=True))
    usable = [(p, r) for p, r in zip(records, replies, strict=True) if all(r)]
    compared = compare_replies(
        [p for p, _ in usable],
        [r for _, r in usable],
        charter=workspace.charter.hash,
        seed=workspace.seed("annotators"),
    )
    version = write_dataset(
        workspace.out / "data",
        "comparisons",
        compared,
        sources=[{"made_by": "trueward.testbed", "policy": policy.hash, "prompts": asked.hash}],
        info=_info(workspace, test=workspace.recipe.data.test_share, licence="Apache-2.0"),
    )
    same = sum(a == b for a, b in replies)
    workspace.say(
        f"data set comparisons {short(version.hash)}: {version.num_records:,} pairs from "
        f"{len(records):,} prompts; {same:,} prompts had two identical replies, "
        f"{len(replies) - len(usable):,} an empty one"
    )
    return version


def train_prompts(workspace: Workspace) -> list[Prompt]:
    """Prompts to draw completions for in PPO: those of the comparisons' training split."""
    return _prompts_of(pairs(workspace).train)


def test_prompts(workspace: Workspace) -> tuple[list[Prompt], str, str]:
    """Held-out prompts for evaluation, with name and hash of the data set they are from."""
    if workspace.recipe.data.source == "testbed":
        version = _open(workspace, "held-out")
        return [r for r in version.records() if isinstance(r, Prompt)], version.name, version.hash
    found = pairs(workspace)
    return _prompts_of(found.test)[: workspace.recipe.eval.prompts], found.name, found.hash


def _prompts_of(records: Sequence[Comparison]) -> list[Prompt]:
    unique: dict[str, Prompt] = {}
    for record in records:
        key = f"{prompt_key(record)}\n{record.prompt[-1].content}"
        unique.setdefault(key, Prompt(id=record.id, messages=record.prompt, meta=record.meta))
    return list(unique.values())


def import_command(path: Path, out: Path, *, name: str, format: str, licence: str, max_bad: float) -> None:
    """`trueward data import`."""
    console = Console(stderr=True)
    meta = Meta(source=path.name, licence=licence)
    item = import_file(
        path, quarantine=out / "quarantine" / f"{path.name}.jsonl", format=format, meta=meta, max_bad=max_bad
    )
    console.print(item.detected, markup=False, highlight=False)
    version = write_dataset(out, name, item, imports=[item], info=DatasetInfo(licence=licence))
    console.print(item.summary(), markup=False, highlight=False)
    console.print(f"wrote {version.path}", markup=False, highlight=False)


def export_command(dataset: Path, out: Path, *, form: str) -> None:
    """`trueward data export`."""
    count = export_file(open_dataset(dataset).records(), out, form=form)
    Console(stderr=True).print(f"wrote {count:,} rows to {out}", markup=False, highlight=False)
