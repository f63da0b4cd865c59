"""Solutions of the policy itself, labelled step by step by rollouts: a data set that a run makes once.

    <out>/labels/                       run folder: manifest, metrics.jsonl
    <out>/labels/parts/train-0000.json  labelled solutions of some questions; what a killed run had is kept
    <out>/data/step-labels/<id>/        the labelled solutions of the training questions, immutable
    <out>/data/step-labels-held-out/    those of the test questions
The first stage that asks for them makes them; later ones read them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from trueward.core.files import read_json, write_json
from trueward.core.hashing import hash_json, short
from trueward.core.metrics import MetricsLog
from trueward.core.progress import Bar
from trueward.data.chat import stop_ids
from trueward.data.dataset import DatasetInfo, DatasetVersion, open_dataset, write_dataset
from trueward.data.records import Meta, Record, from_json, to_json
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, asked_records
from trueward.pipeline.questions import asked_questions
from trueward.pipeline.recipe import Policy
from trueward.pipeline.training import check
from trueward.pipeline.workspace import Begun, Interrupted, Workspace
from trueward.rewards import all_of
from trueward.rollouts.local import LocalEngine
from trueward.trainers.signals import stop_on_signal
from trueward.trainers.state import trim_rows
from trueward.trainers.step_rollouts import Asked, Labeller, StepCounts

__all__ = ["record_of", "rollout_labels", "start_of", "step_end"]

STAGE = "labels"
_SCHEMA = "trueward.step_labels_part/1"
_NAMES = {"train": "step-labels", "test": "step-labels-held-out"}
# Questions of a part: a killed run loses at most one part, and rows of many questions decode together.
_PART = 16


def start_of(workspace: Workspace, given: Policy | None) -> str:
    """The stage whose model is meant: the one named, else SFT where the run has it, else the base."""
    return given or ("sft" if workspace.has("sft") else "base")


def record_of(workspace: Workspace, stage: str, loaded: LoadedModel) -> str:
    """Registry id of the model that a stage made, or of the base model."""
    return workspace.base_record(loaded) if stage == "base" else workspace.record_of(stage, "model")


def step_end(workspace: Workspace) -> str:
    """Text that ends a step."""
    testbed = workspace.recipe.data.source == "testbed"
    return workspace.recipe.steps.end or (" ." if testbed else "\n")


class _Run(NamedTuple):
    """What all parts share. stage: the policy's."""

    begun: Begun
    stage: str
    policy: LoadedModel
    labeller: Labeller
    asked: dict[str, list[Asked]]


class _Part(NamedTuple):
    """Some questions of one split."""

    split: str
    number: int
    asked: Sequence[Asked]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:04d}.json"


def _labeller(workspace: Workspace, policy: LoadedModel) -> Labeller:
    recipe = workspace.recipe
    return Labeller(
        engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
        verify=all_of(recipe.questions.verifiers),
        decode=lambda ids: str(policy.tokenizer.decode(list(ids), skip_special_tokens=True)),
        stop_ids=stop_ids(policy.tokenizer),
        step_end=step_end(workspace),
        right_at=recipe.questions.right_at,
        max_tokens=recipe.data.max_tokens,
        settings=recipe.steps.rollouts,
    )


def _asked(workspace: Workspace, policy: LoadedModel, data: FeedbackData[Record]) -> dict[str, list[Asked]]:
    recipe, section = workspace.recipe, workspace.recipe.steps
    found: dict[str, list[Asked]] = {}
    for split, words, records, most in (
        ("train", "training", data.train, section.train_questions),
        ("test", "test", data.test, section.test_questions),
    ):
        made = asked_questions(
            workspace,
            policy,
            records,
            split=words,
            section=recipe.questions,
            key="questions",
            max_new_tokens=section.rollouts.max_new_tokens,
            who="labels by rollouts",
        )
        check(workspace, policy, made.groups, completions=False, quiet=True)
        rows = zip(made.prompts, made.groups, strict=True)
        found[split] = [Asked(prompt, group, made.questions[group.id]) for prompt, group in rows][:most]
    return found


def _parts(asked: dict[str, list[Asked]]) -> Iterator[_Part]:
    for split, questions in asked.items():
        for start in range(0, len(questions), _PART):
            yield _Part(split, start // _PART, questions[start : start + _PART])


def _begin(workspace: Workspace, stage: str, policy: LoadedModel, data: FeedbackData[Record]) -> Begun:
    recipe = workspace.recipe
    config = {
        "section": recipe.steps.model_dump(mode="json", exclude={"labels", "max_dropped", "policy"}),
        "questions": recipe.questions.model_dump(mode="json"),
        "step_end": step_end(workspace),
        "policy": stage,
        "max_tokens": recipe.data.max_tokens,
        "limit": recipe.data.limit,
    }
    parents = {
        "model": policy.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": policy.template_hash,
    }
    # Labels that are there already are read, not made anew, by whichever stage asks next.
    again = replace(workspace, resume=True) if workspace.has(STAGE) else workspace
    return again.begin(STAGE, config=config, parents=parents)


def _label(workspace: Workspace, run: _Run, part: _Part) -> StepCounts:
    """The labelled solutions of a part, onto the disk unless they are there already."""
    file = run.begun.folder.path / "parts" / part.name
    if not file.is_file():
        meta = Meta(
            source="rollouts",
            annotator=f"rollouts of {short(run.policy.hash)}",
            charter=workspace.charter.hash,
        )
        made = run.labeller.label(part.asked, meta=meta, seed=workspace.seed(STAGE, part.split, part.number))
        body = {"counts": asdict(made.counts), "records": [to_json(record) for record in made.records]}
        write_json(file, {"schema": _SCHEMA, **body})
    return StepCounts(**read_json(file)["counts"])


def _records(folder: Path, parts: Sequence[_Part]) -> Iterator[Record]:
    for part in parts:
        yield from map(from_json, read_json(folder / "parts" / part.name)["records"])


def _figures(counts: StepCounts, rows: int) -> dict[str, float]:
    judged = counts.solutions + counts.completions
    return {
        "completions/clipped_ratio": counts.unfinished / counts.solutions,
        "verifier/error_share": (counts.errors + counts.completion_errors) / judged,
    }


def _label_all(workspace: Workspace, run: _Run, bar: Bar) -> dict[str, StepCounts]:
    """Counts of each split.

    Raises:
        Interrupted: a signal came; the parts that are done are on disk.
    """
    folder = run.begun.folder.path
    totals = dict.fromkeys(run.asked, StepCounts())
    trim_rows(folder / "metrics.jsonl", 0)
    with stop_on_signal() as stop, MetricsLog(folder, workspace.recipe.track) as log:
        for step, part in enumerate(_parts(run.asked), 1):
            counts = _label(workspace, run, part)
            totals[part.split] = totals[part.split].plus(counts)
            log.log(_figures(counts, len(part.asked)), step=step)
            right = totals[part.split].right / max(1, totals[part.split].solutions)
            bar.advance(len(part.asked), f"{part.split}: {right:.2f} right")
            if stop and bar.done < sum(map(len, run.asked.values())):
                run.begun.folder.finish(status="interrupted")
                raise Interrupted(
                    f"stopped after {bar.done} questions, kept in {folder}; run the same command with "
                    "--resume to go on"
                )
    return totals


def _write(
    workspace: Workspace, run: _Run, data: FeedbackData[Record], split: str, seed: int
) -> DatasetVersion:
    recipe, settings = workspace.recipe, workspace.recipe.steps.rollouts
    source = {
        "made_by": "trueward rollouts",
        "policy": run.policy.hash,
        "policy_stage": run.stage,
        "questions": data.hash,
        "step_end": step_end(workspace),
        "verifiers": [verifier.model_dump(mode="json") for verifier in recipe.questions.verifiers],
        "right_at": recipe.questions.right_at,
        "seed": seed,
        **settings.model_dump(mode="json"),
    }
    info = DatasetInfo(
        charter=workspace.charter.hash,
        template=run.policy.template_hash,
        fractions={"train": float(split == "train"), "test": float(split == "test")},
        licence=recipe.data.licence,
    )
    parts = [part for part in _parts(run.asked) if part.split == split]
    records = _records(run.begun.folder.path, parts)
    return write_dataset(workspace.out / "data", _NAMES[split], records, sources=[source], info=info)


def _registered(workspace: Workspace, version: DatasetVersion, parents: Sequence[str]) -> str:
    body = {
        "name": version.name,
        "hash": version.hash,
        "counts": version.manifest["counts"],
        "licence": version.manifest["licence"],
        "sources": version.manifest["sources"],
    }
    return workspace.registry.put("dataset", body, parents)


def _make(workspace: Workspace, run: _Run, data: FeedbackData[Record]) -> None:
    started_s = time.monotonic()
    with workspace.bar("labels", sum(map(len, run.asked.values()))) as bar:
        totals = _label_all(workspace, run, bar)
    versions = {split: _write(workspace, run, data, split, workspace.recipe.seed) for split in run.asked}
    parents = [*data.records, record_of(workspace, run.stage, run.policy)]
    made = {
        split: {"path": version.path.name, "hash": version.hash, "records": version.num_records}
        for split, version in versions.items()
    }
    ids = {split: _registered(workspace, version, parents) for split, version in versions.items()}
    workspace.finish(
        run.begun.folder,
        results={
            "seconds": time.monotonic() - started_s,
            "data": made,
            "datasets": ids,
            "counts": {split: asdict(counts) for split, counts in totals.items()},
        },
        parents=parents,
    )


def _say(workspace: Workspace, stage: str, results: dict[str, Any]) -> None:
    for split, body in results["counts"].items():
        c = StepCounts(**body)
        workspace.say(
            f"labels by rollouts of {stage}, {split}: {c.solutions:,} solutions, {c.right:,} of them right; "
            f"{c.completions:,} completions of their steps. Verifier errors, which are no label: "
            f"{c.errors:,} solutions and {c.completion_errors:,} completions; {c.unfinished:,} solutions hit "
            f"the length limit, {c.unusable:,} are empty or hold no text and are left out"
        )


def rollout_labels(workspace: Workspace) -> FeedbackData[Record]:
    """The policy's own solutions, labelled by rollouts; made where they are not there yet.

    Raises:
        DataError: no record says what is right, or every solution is empty.
        ConfigError: a verifier cannot be made.
        RunError: there are labels made with other settings.
        Interrupted: a signal came.
    """
    stage = start_of(workspace, workspace.recipe.steps.policy)
    data, policy = asked_records(workspace), workspace.load(stage)
    labeller = _labeller(workspace, policy)
    begun = _begin(workspace, stage, policy, data)
    if not begun.done:
        run = _Run(begun, stage, policy, labeller, _asked(workspace, policy, data))
        _make(workspace, run, data)
    results = workspace.run(STAGE).manifest["results"]
    _say(workspace, stage, results)
    found: dict[str, list[Record]] = {}
    hashes: list[str] = []
    for split, name in _NAMES.items():
        version = open_dataset(workspace.out / "data" / name / results["data"][split]["path"])
        version.verify()
        found[split] = list(version.records())
        hashes.append(version.hash)
    ids = tuple(results["datasets"].values())
    return FeedbackData(_NAMES["train"], hash_json(hashes), found["train"], found["test"], ids)
