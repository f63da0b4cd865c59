"""The run as a whole: its folder, its records, its charter, and the stages' run folders below it.

    <out>/recipe.yaml        resolved recipe of the first command; each run folder has its own
    <out>/data/<name>/<id>/  data set versions       <out>/records/     registry
    <out>/<stage>/           run folder of a stage   <out>/eval/<id>/   one evaluation; newest.json names it
    <out>/summary.json       every figure            <out>/report.html  the same to look at
Opening a workspace writes nothing: what a command refuses to do leaves the folder as it was.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from trueward.charter import Charter, load_charter
from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json, write_text
from trueward.core.hashing import hash_json, short
from trueward.core.progress import Bar, stage_bar
from trueward.core.run import RunFolder, create_run, open_run
from trueward.core.seed import derive_seed
from trueward.core.trackers import check_trackers
from trueward.models.backend import choose_device
from trueward.models.load import LoadedModel, load_causal, load_reward
from trueward.pipeline.operating_point import check_system_role, named_point
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.testbed_base import shipped_base
from trueward.registry import Registry
from trueward.trainers.loop import FREE_SETTINGS, TrainResult, resume_hint

__all__ = [
    "Begun",
    "Interrupted",
    "Workspace",
    "hub_origin",
    "open_workspace",
    "recipe_text",
    "trackers_of",
]

NEWEST_SCHEMA = "trueward.newest/1"
_INTENTION = re.compile(r"\.?(manifest\.json|recipe\.yaml)(\.[^/]*)?|quarantine/[^/]*")


class Interrupted(RunError):
    """A stage was stopped by a signal and saved itself."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage's run folder, whether it is done already, and whether it goes on from what is there."""

    folder: RunFolder
    done: bool
    resume: bool


@dataclass(frozen=True, slots=True)
class Workspace:
    """Everything that stages share. `resume` lets them go on from what is on disk."""

    recipe: Recipe
    charter: Charter
    registry: Registry
    console: Console
    resume: bool
    started_s: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        return self.recipe.out

    def seed(self, *names: str | int) -> int:
        """The seed of one use of randomness."""
        return derive_seed(self.recipe.seed, *names)

    @property
    def device(self) -> str:
        """Where the models of this run lie."""
        return choose_device(self.recipe.model.device)

    @property
    def system(self) -> str:
        """System prompt of the operating point; empty where none is sent."""
        point = named_point(self.charter, self.recipe.operating_point)
        return "" if point is None else point.system

    def say(self, text: str) -> None:
        """One line for the user; nothing in it is read as markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """A progress bar for a stage."""
        with stage_bar(name, total, self.console) as bar:
            yield bar

    @property
    def base_path(self) -> str:
        """Folder or hub id of the base model."""
        return self.recipe.model.path or str(shipped_base())

    def model_path(self, stage: str) -> str:
        """Folder of the model that `stage` made; `base` is the base model.

        Raises:
            RunError: the stage has not been run to its end.
        """
        if stage == "base":
            return self.base_path
        if not self.has(stage):
            raise RunError(
                f"stage {stage} has made no model in {self.out}",
                remedy=f"run `trueward {stage}` with this recipe first",
            )
        return str(self.out / stage / "model")

    def has(self, stage: str) -> bool:
        """Whether a stage has been run to its end."""
        return (self.out / stage / "manifest.json").is_file() and self.run(stage).manifest["status"] == "done"

    def run(self, stage: str) -> RunFolder:
        """The run folder of a stage that exists."""
        return open_run(self.out / stage)

    def load(self, stage: str) -> LoadedModel:
        """A stage's model, to be used as it is."""
        dtype = self.recipe.model.dtype
        return self._able(load_causal(self.model_path(stage), dtype=dtype, device=self.device))

    def load_to_train(self, stage: str, *, adapters: bool = True) -> LoadedModel:
        """A stage's model to train: under fresh adapters where the recipe asks for them, else in float32.

        Args:
            adapters: False trains in full whatever the recipe says.
        """
        section = self.recipe.model
        if section.lora is None or not adapters:
            whole = load_causal(self.model_path(stage), dtype="float32", device=self.device)
            return self._able(whole)
        seed = self.seed("lora", stage)
        loaded = load_causal(
            self.model_path(stage), dtype=section.dtype, lora=section.lora, device=self.device, seed=seed
        )
        return self._able(loaded)

    def _able(self, loaded: LoadedModel) -> LoadedModel:
        """The model, which must be able to send the system prompt of the operating point."""
        if self.system:
            check_system_role(loaded, name=str(self.recipe.operating_point), system=self.system)
        return loaded

    def load_reward(self) -> LoadedModel:
        """The reward model, probes verified."""
        return load_reward(self.model_path("reward"), device=self.device)

    def begin(
        self, stage: str, *, config: Mapping[str, Any], parents: Mapping[str, str], at: Path | None = None
    ) -> Begun:
        """Make the run folder of a stage, or reopen it when resuming.

        Args:
            at: the folder; None is `<out>/<stage>`.

        Raises:
            RunError: the folder exists and `resume` is off, or it belongs to another configuration.
            ConfigError: a tracker of the stage is not installed.
        """
        check_trackers(trackers_of(self.recipe, [stage]))
        config = self._with_surroundings(stage, config)
        path = at or self.out / stage
        if self.resume and (path / "manifest.json").is_file():
            run = open_run(path)
            _check_same(run, config, parents, self.recipe.seed)
            return Begun(run, run.manifest["status"] == "done", True)
        if _nothing_made(path):
            shutil.rmtree(path)
        run = create_run(path, stage=stage, config=config, parents=parents, seed=self.recipe.seed)
        write_text(path / "recipe.yaml", recipe_text(self.recipe))
        if not (self.out / "recipe.yaml").exists():
            write_text(self.out / "recipe.yaml", recipe_text(self.recipe))
        return Begun(run, False, False)

    def _with_surroundings(self, stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a stage with the device and the operating point it works under; imports know
        neither, pretraining no operating point."""
        if stage == "data":
            return dict(config)
        name = self.recipe.operating_point
        placed = {**config, "device": self.device}
        if name is None or stage == "pretrain":
            return placed
        return {**placed, "operating_point": {"name": name, "system": self.system}}

    def begin_evaluation(self, *, config: Mapping[str, Any], parents: Mapping[str, str]) -> Begun:
        """The folder of one evaluation. What was measured and how decides its name: other models or settings
        make a new one and the old ones stay; an unfinished one is done again."""
        key = short(hash_json([self._with_surroundings("eval", config), dict(parents), self.recipe.seed]))
        path = self.out / "eval" / key
        if (path / "manifest.json").is_file():
            run = open_run(path)
            return Begun(run, run.manifest["status"] == "done", True)
        return self.begin("eval", config=config, parents=parents, at=path)

    def set_newest_evaluation(self, run: RunFolder) -> None:
        """Name the evaluation that gate and report read."""
        write_json(self.out / "eval" / "newest.json", {"schema": NEWEST_SCHEMA, "folder": run.path.name})

    def evaluation(self) -> RunFolder:
        """The newest finished evaluation.

        Raises:
            RunError: there is none.
        """
        file = self.out / "eval" / "newest.json"
        if not file.is_file():
            raise RunError(f"{self.out} holds no finished evaluation", remedy="run the eval stage first")
        return open_run(file.parent / str(read_json(file)["folder"]))

    def check_finished(self, run: RunFolder, result: TrainResult) -> None:
        """Turn an interrupted training into an orderly end of the command.

        Raises:
            Interrupted: with the sentence that tells how to go on.
        """
        for warning in result.warnings:
            self.say(f"warning: {warning}")
        if result.interrupted:
            run.finish(status="interrupted")
            raise Interrupted(resume_hint(result.step, run.path))

    def finish(
        self,
        run: RunFolder,
        *,
        results: Mapping[str, Any],
        model: str | None = None,
        parents: Sequence[str] = (),
    ) -> None:
        """Close a stage: its run and model into the registry, its figures into the manifest.

        Args:
            results: figures and notes, JSON values.
            model: hash of the model it made.
            parents: registry ids of what it was made from; the charter is added.
        """
        stage = str(run.manifest["stage"])
        manifest = {
            key: value for key, value in run.manifest.items() if key not in ("results", "status", "finished")
        }
        body = {"name": stage, "stage": stage, "manifest": manifest}
        ids = {"run": self.registry.put("run", body, [*parents, self.charter_record()])}
        if model is not None:
            ids["model"] = self.registry.put(
                "model", {"name": stage, "stage": stage, "hash": model}, [ids["run"]]
            )
        run.finish(results={**results, "records": ids})

    def charter_record(self) -> str:
        """Registry id of the charter in force."""
        charter = self.charter
        return self.registry.put(
            "charter", {"name": charter.name, "hash": charter.hash, "charter": charter.body()}
        )

    def base_record(self, base: LoadedModel) -> str:
        """Registry id of the base model; its name is that of its folder, or its hub id."""
        name = self.recipe.model.path or "the testbed's base model"
        name = Path(name).name if Path(name).is_dir() else name
        body = {"name": f"base: {name}", "stage": "base", "hash": base.hash, **hub_origin(base)}
        return self.registry.put("model", body)

    def record_of(self, stage: str, kind: str) -> str:
        """Registry id of what a finished stage made."""
        return str(self.run(stage).manifest["results"]["records"][kind])


def hub_origin(base: LoadedModel) -> dict[str, Any]:
    """Hub id and commit of a model that came from there, for manifests and records; nothing for a folder."""
    return {"hub": {"id": base.path, "commit": base.commit}} if base.commit else {}


def trackers_of(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """Trackers that the trainings of `stages` write to."""
    sections = [getattr(recipe, stage, None) for stage in stages]
    trainings = [getattr(section, "train", None) for section in sections]
    return [name for train in trainings if train is not None for name in (*recipe.track, *train.track)]


def _check_same(run: RunFolder, config: Mapping[str, Any], parents: Mapping[str, str], seed: int) -> None:
    before = {
        "config": _decisive(run.manifest["config"]),
        "inputs": run.manifest["parents"],
        "seed": run.manifest["seed"],
    }
    now = {"config": _decisive(config), "inputs": dict(parents), "seed": seed}
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        raise RunError(
            f"{run.path} was made with other {' and '.join(changed)}, so it cannot be resumed",
            remedy="give the recipe.yaml of that folder, or choose another `out`",
        )


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without settings of training that a run may be resumed with other values of."""
    section = config.get("section")
    if not isinstance(section, Mapping):
        return dict(config)
    kept = {key: value for key, value in section.items() if key not in FREE_SETTINGS}
    if isinstance(section.get("train"), Mapping):
        kept["train"] = {key: value for key, value in section["train"].items() if key not in FREE_SETTINGS}
    return {**config, "section": kept}


def _nothing_made(path: Path) -> bool:
    """Whether a run folder holds no more than the intention: a stage that failed or was killed before it made
    anything, so that the mended recipe can have the place."""
    files = [item.relative_to(path) for item in path.rglob("*") if not item.is_dir()] if path.is_dir() else []
    if not (path / "manifest.json").is_file():
        return bool(files) and all(file.as_posix().startswith(".manifest.json.") for file in files)
    only_intended = all(_INTENTION.fullmatch(file.as_posix()) for file in files)
    return only_intended and open_run(path).manifest["status"] != "done"


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def open_workspace(recipe: Recipe, *, console: Console | None = None, resume: bool = False) -> Workspace:
    """Read the charter and take hold of the run's folder; nothing is written yet.

    Raises:
        ConfigError: the charter does not validate, or has no such operating point.
        RunError: the folder is a file.
    """
    if recipe.out.exists() and not recipe.out.is_dir():
        raise RunError(
            f"{recipe.out} is a file", expected="a folder for the run", remedy="choose another `out`"
        )
    charter = load_charter(recipe.charter)
    named_point(charter, recipe.operating_point)
    return Workspace(
        recipe, charter, Registry(recipe.out / "records"), console or Console(stderr=True), resume
    )
