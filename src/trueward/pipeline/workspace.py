"""The run as a whole: its folder, its records, its charter, and the stages' run folders below it.

<out>/recipe.yaml        resolved recipe           <out>/records/     registry
<out>/data/<name>/<id>/  data set versions         <out>/<stage>/     run folder of a stage
<out>/summary.json       every figure              <out>/report.html  the same to look at
"""

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
from trueward.core.files import write_text
from trueward.core.progress import Bar, stage_bar
from trueward.core.run import RunFolder, create_run, open_run
from trueward.core.seed import derive_seed
from trueward.models.load import LoadedModel, load_causal, load_reward
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.testbed_base import shipped_base
from trueward.registry import Registry
from trueward.trainers.loop import TrainResult, resume_hint

__all__ = ["Begun", "Interrupted", "Workspace", "open_workspace"]

MODEL_STAGES = ("sft", "dpo", "ppo")


class Interrupted(RunError):
    """A stage was stopped by a signal and saved itself."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage's run folder, and whether it is done already."""

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

    def say(self, text: str) -> None:
        """One line for the user; nothing in it is read as markup."""
        self.console.print(text, markup=False, highlight=False)

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
            RunError: the stage has not been run.
        """
        if stage == "base":
            return self.base_path
        folder = self.out / stage / "model"
        if not folder.is_dir():
            raise RunError(
                f"stage {stage} has made no model in {self.out}",
                remedy=f"run `trueward {stage}` with this recipe first",
            )
        return str(folder)

    def has(self, stage: str) -> bool:
        """Whether a stage has been run to its end."""
        return (self.out / stage / "manifest.json").is_file() and self.run(stage).manifest["status"] == "done"

    def run(self, stage: str) -> RunFolder:
        """The run folder of a stage that exists."""
        return open_run(self.out / stage)

    def load(self, stage: str, *, lora: bool = False) -> LoadedModel:
        """Load a stage's model; `lora` puts fresh adapters on it where the recipe asks for adapters."""
        section = self.recipe.model
        settings = section.lora if lora else None
        return load_causal(
            self.model_path(stage), dtype=section.dtype, lora=settings, seed=self.seed("lora", stage)
        )

    def load_reward(self) -> LoadedModel:
        """Load the reward model, probes verified."""
        return load_reward(self.model_path("reward"))

    def begin(self, stage: str, *, config: Mapping[str, Any], parents: Mapping[str, str]) -> Begun:
        """Make the run folder of a stage, or reopen it when resuming.

        Raises:
            RunError: the folder exists and `resume` is off, or it belongs to another configuration.
        """
        path = self.out / stage
        if self.resume and (path / "manifest.json").is_file():
            run = open_run(path)
            if run.manifest["config"] != dict(config) or run.manifest["parents"] != dict(parents):
                raise RunError(
                    f"{path} was made with another configuration or other inputs, so it cannot be resumed",
                    remedy="choose another `out`, or run without --resume in an empty folder",
                )
            return Begun(run, run.manifest["status"] == "done", True)
        run = create_run(path, stage=stage, config=config, parents=parents, seed=self.recipe.seed)
        return Begun(run, False, False)

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
        """Close a stage: its figures into the manifest, its run and model into the registry."""
        stage = str(run.manifest["stage"])
        body = {
            "name": stage,
            "stage": stage,
            "manifest": {k: v for k, v in run.manifest.items() if k != "results"},
        }
        ids = {"run": self.registry.put("run", body, list(parents))}
        if model is not None:
            ids["model"] = self.registry.put(
                "model", {"name": stage, "stage": stage, "hash": model}, [ids["run"]]
            )
        run.finish(results={**results, "records": ids})

    def record_of(self, stage: str, kind: str) -> str:
        """Registry id of what a finished stage made."""
        return str(self.run(stage).manifest["results"]["records"][kind])


def open_workspace(recipe: Recipe, *, console: Console | None = None, resume: bool = False) -> Workspace:
    """Open the run's folder, write the resolved recipe there, and record charter and base model.

    Raises:
        ConfigError: the charter does not validate.
        StorageError: the folder cannot be written.
    """
    charter = load_charter(recipe.charter)
    workspace = Workspace(
        recipe, charter, Registry(recipe.out / "records"), console or Console(stderr=True), resume
    )
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(recipe.out / "recipe.yaml", text)
    workspace.registry.put("charter", {"name": charter.name, "hash": charter.hash, "charter": charter.body()})
    return workspace
