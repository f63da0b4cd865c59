"""The stages of models that judge solutions: PRM (each step) and ORM (the whole), from labelled solutions.

One function trains both; they differ in what is labelled and in their section of the recipe. Both are judged
on held-out problems beside a constant and the rule that short is right.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from trueward.core.files import write_jsonl
from trueward.core.hashing import short
from trueward.core.stats import Estimate
from trueward.data.chat import TokenGroup
from trueward.data.records import Record
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData
from trueward.pipeline.held_out import step_looks
from trueward.pipeline.recipe import Policy
from trueward.pipeline.rollout_labels import record_of, start_of, step_end
from trueward.pipeline.solutions import Solutions, labelled_solutions, solutions
from trueward.pipeline.training import begin_stage, card, check, parents_of, settings_of, training_figures
from trueward.pipeline.workspace import Begun, Workspace, hub_origin
from trueward.trainers.process import ProcessSettings, score_steps, step_scorer, train_process
from trueward.trainers.process_judge import auc_gain, evaluate_process, fit_length_rule
from trueward.trainers.sampling import num_steps
from trueward.trainers.settings import TrainSettings
from trueward.trainers.step_model import Target, save_steps

__all__ = ["orm", "prm"]


class _Kind(NamedTuple):
    """One of the two stages. settings: its training; process: its objective; start: as the recipe says."""

    stage: str
    title: str
    target: Target
    unit: str
    section: dict[str, Any]
    settings: TrainSettings
    process: ProcessSettings
    start: Policy | None


def prm(workspace: Workspace) -> None:
    """A process reward model.

    Raises:
        DataError: no labelled steps, or all of them alike.
    """
    section = workspace.recipe.prm
    _train(
        workspace,
        _Kind(
            stage="prm",
            title="PRM",
            target="steps",
            unit="steps",
            section=section.model_dump(mode="json"),
            settings=section.train,
            process=section.objective,
            start=section.start,
        ),
    )


def orm(workspace: Workspace) -> None:
    """An outcome reward model.

    Raises:
        DataError: no solutions whose outcome is known, or all of them alike.
    """
    section = workspace.recipe.orm
    _train(
        workspace,
        _Kind(
            stage="orm",
            title="ORM",
            target="outcome",
            unit="solutions",
            section=section.model_dump(mode="json"),
            settings=section.train,
            process=ProcessSettings(),
            start=section.start,
        ),
    )


def _train(workspace: Workspace, kind: _Kind) -> None:
    recipe, data = workspace.recipe, solutions(workspace)
    start = start_of(workspace, kind.start)
    parent = workspace.load(start)
    parents = parents_of(workspace, parent, data)
    section = {**kind.section, "steps": recipe.steps.model_dump(mode="json"), "start": start}
    begun = begin_stage(workspace, kind.stage, section, parents, adapters=False, origin=hub_origin(parent))
    if begun.done:
        return
    workspace.say(f"{kind.title} on the backbone of {start}")
    train, held, counts = _read(workspace, kind, parent, data)
    model = step_scorer(parent.model, parent.tokenizer, kind.process, seed=workspace.seed(kind.stage, "head"))
    # Trained weights are float32 whatever the recipe says of frozen ones.
    nn.Module.to(model, torch.float32)
    settings = settings_of(workspace, kind.stage, kind.settings)
    with workspace.bar(kind.title, num_steps(settings, len(train.items))) as bar:
        result = train_process(
            model,
            train.items,
            settings=settings,
            process=kind.process,
            folder=begun.folder.path,
            bar=bar,
            evaluate=step_looks(held.items, settings, kind.process, stage=kind.stage),
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    text = (
        f"Judges {kind.unit}: {len(train.items):,} solutions (data set {data.name}, {short(data.hash)}). "
        "How a score is read is in trueward_steps.json."
    )
    digest = save_steps(
        model,
        parent.tokenizer,
        begun.folder.model,
        process=kind.process,
        target=kind.target,
        step_end=step_end(workspace),
        card=card(workspace, kind.stage, parent, text=text, made_from=parents),
        replace=begun.resume,
    )
    figures = _judge(workspace, kind, begun, train, held, _scorer(model, kind, settings))
    workspace.finish(
        begun.folder,
        results={
            **training_figures(result),
            "preflight": counts,
            "labels": {"solutions": len(train.items), "problems": len(set(train.problems))},
            "held_out": figures,
        },
        model=digest,
        parents=[*data.records, record_of(workspace, start, parent)],
    )


def _read(
    workspace: Workspace, kind: _Kind, parent: LoadedModel, data: FeedbackData[Record]
) -> tuple[Solutions, Solutions, dict[str, object]]:
    """Training and test solutions, checked, and the counts of the former."""

    def of(records: Sequence[Record], split: str) -> Solutions:
        return labelled_solutions(
            workspace, parent, records, target=kind.target, process=kind.process, split=split
        )

    train, held, most = of(data.train, "training"), of(data.test, "test"), workspace.recipe.steps.max_dropped
    counts = check(workspace, parent, _groups(train), train.dropped, spans="steps", max_dropped=most)
    check(workspace, parent, _groups(held), held.dropped, spans="steps", max_dropped=most, quiet=True)
    return train, held, counts


def _groups(split: Solutions) -> list[TokenGroup]:
    return [item.group for item in split.items]


Scorer = Callable[[Solutions], list[tuple[float, ...]]]


def _scorer(model: nn.Module, kind: _Kind, settings: TrainSettings) -> Scorer:
    return lambda split: score_steps(
        model,
        split.items,
        process=kind.process,
        max_tokens_per_forward=settings.max_tokens_per_forward,
        precision=settings.precision,
    )


def _judge(
    workspace: Workspace, kind: _Kind, begun: Begun, train: Solutions, held: Solutions, score: Scorer
) -> dict[str, Any]:
    """Held-out figures beside those of a constant and of the length rule, which is fitted to the training
    split."""
    neutral, problems = kind.process.neutral_is_right, held.problems
    logps = score(held)
    rule = fit_length_rule(train.items, neutral_is_right=neutral).scores(held.items)
    figures: dict[str, Any] = {}
    for name, scores in (("model", logps), ("shorter is right", rule)):
        found = evaluate_process(scores, held.items, clusters=problems, neutral_is_right=neutral)
        figures[name] = {
            "accuracy": found.accuracy._asdict(),
            "balanced_accuracy": found.balanced_accuracy._asdict(),
            "auc": found.auc._asdict(),
        }
    gain = auc_gain(logps, rule, held.items, clusters=problems, neutral_is_right=neutral)
    auc, accuracy = (Estimate(**figures["model"][name]) for name in ("auc", "accuracy"))
    majority = found.majority
    workspace.say(
        f"{kind.title}: AUC {auc.shown()} over {auc.n:,} held-out {kind.unit} of "
        f"{len(set(problems)):,} problems, {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against "
        f'"shorter is right"; accuracy {accuracy.shown()}, '
        f"a constant's {majority:.2f}"
    )
    verdict = _verdict(kind, auc, gain)
    workspace.say(verdict)
    _samples(begun, held, logps, workspace.recipe.eval.samples)
    return {
        "judges": figures,
        "majority": majority,
        "auc_gain": gain._asdict(),
        "problems": len(set(problems)),
        "verdict": verdict,
    }


def _verdict(kind: _Kind, auc: Estimate, gain: Estimate) -> str:
    if auc.low > 0.5 and gain.low > 0:
        return f"{kind.title}: better than chance and than the length of the solution"
    if auc.low > 0.5:
        return f"{kind.title}: better than chance, but not shown to be better than the length of the solution"
    return f"{kind.title}: not shown to be better than chance; do not choose by it"


def _samples(begun: Begun, held: Solutions, logps: Sequence[Sequence[float]], wanted: int) -> None:
    """The first held-out solutions with each step's probability and label, to be read."""
    rows = zip(held.records[:wanted], logps, strict=False)
    write_jsonl(
        begun.folder.path / "samples.jsonl",
        (
            {
                "prompt": record.prompt[-1].content,
                "steps": [
                    {"text": step, "label": label, "p_right": round(math.exp(logp), 4)}
                    for step, label, logp in zip(record.steps, record.labels, scores, strict=True)
                ],
            }
            for record, scores in rows
        ),
    )
