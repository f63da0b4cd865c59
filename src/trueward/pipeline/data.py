"""The data stage: files or the testbed become immutable data set versions. Import and export by command."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from trueward.core.errors import ConfigError
from trueward.core.hashing import hash_file, hash_json, short
from trueward.data.dataset import DatasetInfo, DatasetVersion, open_dataset, write_dataset
from trueward.data.export import export_file
from trueward.data.importers import ImportResult, import_file
from trueward.data.pairing import PairedLabels
from trueward.data.records import Meta, Prompt, Record
from trueward.data.split import without_prompts_of
from trueward.pipeline.inputs import data_files, renamed, short_names
from trueward.pipeline.workspace import Workspace
from trueward.testbed import demonstrations as simulated_demonstrations
from trueward.testbed import make_world, missing_kinds, prompts, task_of

__all__ = ["data", "dataset_info", "export_command", "import_command"]

R = TypeVar("R", bound=Record)


def data(workspace: Workspace) -> None:
    """Make the data sets that do not depend on a model: imported files, or the testbed's demonstrations and
    prompts.

    Raises:
        RunError: the stage has been run and `resume` is off.
        DataError, ConfigError: files that cannot be used.
    """
    recipe = workspace.recipe
    testbed = recipe.data.source == "testbed"
    files = [] if testbed else data_files(recipe.data.path, key="data.path")
    held = [] if recipe.data.test_path is None else data_files(recipe.data.test_path, key="data.test_path")
    if held and testbed:
        raise ConfigError("data.test_path goes with files, and data.source is testbed", remedy="leave it out")
    section = recipe.data.model_dump(mode="json", exclude={"path", "test_path", "limit", "max_tokens"})
    config = {"section": section, **({"testbed": _amounts(workspace)} if testbed else {})}
    hashes = sorted(hash_file(file) for file in files)
    parents = {"charter": workspace.charter.hash, **({} if testbed else {"files": hash_json(hashes)})}
    if held:
        parents["test_files"] = hash_json(sorted(hash_file(file) for file in held))
    begun = workspace.begin("data", config=config, parents=parents)
    if begun.done:
        return
    made = _simulate(workspace) if testbed else [_import_files(workspace, files, held)]
    sets = {version.name: {"hash": version.hash, "records": version.num_records} for version in made}
    workspace.finish(begun.folder, results={"data": sets})


def _amounts(workspace: Workspace) -> dict[str, Any]:
    return {**workspace.recipe.testbed.model_dump(mode="json"), "held_out": workspace.recipe.eval.prompts}


def dataset_info(workspace: Workspace, *, test: float, licence: str) -> DatasetInfo:
    """What every data set of a run states: licence, charter, split."""
    return DatasetInfo(
        licence=licence,
        charter=workspace.charter.hash,
        fractions={"train": 1 - test, "test": test},
        seed=workspace.recipe.seed,
    )


def _import_files(workspace: Workspace, files: list[Path], held: list[Path]) -> DatasetVersion:
    """The feedback of files; `held` are those to hold out whole."""
    section, folder = workspace.recipe.data, workspace.out / "data"
    names = short_names([*files, *held])
    imports = [_import(workspace, file, name) for file, name in zip([*files, *held], names, strict=True)]
    records: list[Iterable[Record]] = [
        renamed(item, file, name, one_of_many=len(names) > 1)
        for item, file, name in zip(imports, [*files, *held], names, strict=True)
    ]
    left_out: Counter[str] = Counter()
    chained: Iterable[Record] = chain.from_iterable(records)
    if held:
        train, test = (chain.from_iterable(part) for part in (records[: len(files)], records[len(files) :]))
        chained = without_prompts_of(train, test, left_out=left_out)
    paired = PairedLabels(chained) if section.pair_labels else None
    info = dataset_info(workspace, test=section.test_share, licence=section.licence)
    info = replace(info, test_sources=tuple(names[len(files) :]))
    version = write_dataset(folder, "feedback", paired or chained, imports=imports, info=info)
    for item in imports:
        workspace.say(f"{item.detected}: {item.summary()}")
    if held:
        workspace.say(
            f"held out is data.test_path, not data.test_share; {left_out['prompt']:,} records of data.path "
            "share a prompt with it and are left out"
        )
    if paired is not None:
        workspace.say(paired.summary())
    splits = ", ".join(f"{count:,} {split}" for split, count in version.manifest["splits"].items())
    workspace.say(f"data set feedback {short(version.hash)}: {version.num_records:,} records ({splits})")
    return version


def _import(workspace: Workspace, file: Path, name: str) -> ImportResult:
    section = workspace.recipe.data
    return import_file(
        file,
        quarantine=workspace.out / "data" / "quarantine" / f"{name}.jsonl",
        format=section.format,
        meta=Meta(source=name, licence=section.licence),
        max_bad=section.max_bad,
    )


def _simulate(workspace: Workspace) -> list[DatasetVersion]:
    amounts, folder, seed = workspace.recipe.testbed, workspace.out / "data", workspace.seed("testbed")
    world = make_world()
    held_out = prompts(world, workspace.recipe.eval.prompts, held_out=True, seed=seed)
    _check_kinds(held_out)
    source = [{"made_by": "trueward.testbed", "seed": seed}]
    planned: list[tuple[str, Iterable[Record], float]] = [
        ("demonstrations", _unique(simulated_demonstrations(world, amounts.demonstrations, seed)), 0.05),
        ("prompts", prompts(world, amounts.prompts, held_out=False, seed=seed), 0.0),
        ("held-out", held_out, 1.0),
    ]
    made: list[DatasetVersion] = []
    for name, records, test in planned:
        info = dataset_info(workspace, test=test, licence="Apache-2.0")
        made.append(write_dataset(folder, name, records, sources=source, info=info))
        workspace.say(f"data set {name} {short(made[-1].hash)}: {made[-1].num_records:,} records")
    return made


def _check_kinds(held_out: list[Prompt]) -> None:
    missing = missing_kinds([task_of(prompt.meta) for prompt in held_out])
    if missing:
        raise ConfigError(
            f"with so few held-out prompts there is none of the kind {missing[0]} to measure on",
            value=len(held_out),
            remedy="raise eval.prompts; 100 are enough for every kind",
        )


def _unique(records: Iterable[R]) -> Iterator[R]:
    """Records without exact repeats, which the simulation draws now and then; they carry no information."""
    seen: set[str] = set()
    for record in records:
        if record.id not in seen:
            seen.add(record.id)
            yield record


def import_command(path: Path, out: Path, *, name: str, format: str, licence: str, max_bad: float) -> None:
    """`trueward data import`."""
    console = Console(stderr=True)
    meta = Meta(source=path.name, licence=licence)
    quarantine = out / "quarantine" / f"{path.name}.jsonl"
    item = import_file(path, quarantine=quarantine, format=format, meta=meta, max_bad=max_bad)
    console.print(item.detected, markup=False, highlight=False)
    version = write_dataset(out, name, item, imports=[item], info=DatasetInfo(licence=licence))
    console.print(item.summary(), markup=False, highlight=False)
    console.print(f"wrote {version.path}", markup=False, highlight=False)


def export_command(dataset: Path, out: Path, *, form: str) -> None:
    """`trueward data export`."""
    count = export_file(open_dataset(dataset).records(), out, form=form)
    Console(stderr=True).print(f"wrote {count:,} rows to {out}", markup=False, highlight=False)
