"""The weak-to-strong stage: a weak supervisor, or a chain of them, teaches the base model.

    the first supervisor learns the truth of `known` records        and labels the rest
    each later one is trained on the labels of the one before       and labels them again
    the student is trained on the last labels; the ceiling, the same model, on the truth of these records
All are measured on the same held-out items; gap recovered = (student - first) / (ceiling - first).
The student is the base model and not the SFT model, which may have seen the truth.
    <out>/weak_to_strong/trainings/<name>/   a training each, taken up where it was left
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from trueward.core.errors import DataError, EvidenceError
from trueward.core.stats import bootstrap_mean, paired_difference
from trueward.data.records import Comparison, Demonstration
from trueward.evals import performance_gap_recovered
from trueward.models.checkpoint import model_hash
from trueward.models.load import LoadedModel, locate_model
from trueward.pipeline.datasets import FeedbackData, demonstrations, pairs
from trueward.pipeline.training import begin_stage, parents_of
from trueward.pipeline.weak_answers import AnswerLabels
from trueward.pipeline.weak_pairs import PreferenceLabels
from trueward.pipeline.weak_tasks import WeakTask, learner_of, student_of
from trueward.pipeline.workspace import Begun, Workspace

__all__ = ["weak_to_strong"]

Item = TypeVar("Item", Comparison, Demonstration)
Label = TypeVar("Label", float, str)
Taught = TypeVar("Taught")
Outcomes = Mapping[str, float]


def _estimates(outcomes: Mapping[str, Outcomes]) -> tuple[dict[str, list[float]], int]:
    """Outcomes of every learner on the items that all of them could take, and how many items are left out."""
    common = set.intersection(*(set(found) for found in outcomes.values()))
    everything = set.union(*(set(found) for found in outcomes.values()))
    ids = [i for i in next(iter(outcomes.values())) if i in common]
    if not ids:
        raise DataError(
            "no held-out item can be used by all models",
            value={name: len(found) for name, found in outcomes.items()},
            remedy="raise data.max_tokens or data.test_share",
        )
    return {name: [found[i] for i in ids] for name, found in outcomes.items()}, len(everything) - len(ids)


def _gap(weak: list[float], student: list[float], ceiling: list[float]) -> dict[str, Any]:
    """The performance gap recovered with its interval, an unbounded end as null; or why there is none."""
    try:
        gap = performance_gap_recovered(weak, student, ceiling)
    except EvidenceError as error:
        return {"no_gap": str(error)}
    found = {k: v if math.isfinite(v) else None for k, v in gap.recovered._asdict().items()}
    return {"pgr": found, "undefined": gap.undefined}


def _figures(outcomes: Mapping[str, Outcomes], first: str) -> dict[str, Any]:
    values, left_out = _estimates(outcomes)
    held = {name: bootstrap_mean(found)._asdict() for name, found in values.items()}
    figures: dict[str, Any] = {
        "held_out": held,
        "held_out_left_out": left_out,
        "gain": paired_difference(values["student"], values[first])._asdict(),
    }
    if "ceiling" in values:
        figures |= _gap(values[first], values["student"], values["ceiling"])
    return figures


def _teach(
    workspace: Workspace, begun: Begun, base: LoadedModel, task: WeakTask[Item, Label, Taught]
) -> tuple[Taught, dict[str, Any]]:
    """The student, and what was measured on the way.

    Raises:
        DataError: fewer records than the first supervisor is to learn from, or a supervisor without labels.
    """
    section = workspace.recipe.weak_to_strong
    if not task.rest.items:
        raise DataError(
            "the first supervisor would learn the truth of every record, so none is left to label",
            value=f"{len(task.known.items):,} records of use, {task.left_out:,} without a better answer, "
            f"weak_to_strong.known={section.known}",
            remedy="lower weak_to_strong.known or give more data",
        )
    if task.left_out:
        workspace.say(f"weak-to-strong: {task.left_out:,} pairs without a better answer are left out")
    lesson, outcomes, labelled = task.known, {}, {}
    for number, link in enumerate(section.chain, 1):
        learner = learner_of(workspace, begun, link, number, base)
        taught = task.learn(learner, lesson)
        lesson = task.label(taught, task.rest.items)
        if not lesson.items:
            raise DataError(
                f"supervisor {learner.name} gives no label of use",
                value=f"{lesson.left_out:,} records left out",
                remedy="take a better supervisor, train it longer, or raise data.max_tokens",
            )
        outcomes[learner.name] = task.outcomes(taught)
        labelled[learner.name] = {
            "labels": len(lesson.items),
            "left_out": lesson.left_out,
            "right": task.right(lesson),
        }
        _say_labels(workspace, learner.name, labelled[learner.name])
    adapters = section.labels == "answers"
    student = task.learn(student_of(workspace, begun, ceiling=False, adapters=adapters), lesson)
    outcomes["student"] = task.outcomes(student)
    if section.ceiling:
        kept = {item.id for item in lesson.items}
        rows = [row for row in zip(task.rest.items, task.rest.labels, strict=True) if row[0].id in kept]
        truth = task.rest._replace(items=[item for item, _ in rows], labels=[label for _, label in rows])
        best = task.learn(student_of(workspace, begun, ceiling=True, adapters=adapters), truth)
        outcomes["ceiling"] = task.outcomes(best)
    figures = _figures(outcomes, next(iter(labelled)))
    return student, {"measured_by": task.measured_by, "chain": labelled, **figures}


def _say_labels(workspace: Workspace, name: str, figures: Mapping[str, Any]) -> None:
    right = "" if figures["right"] is None else f", {figures['right']:.3f} by the truth"
    workspace.say(
        f"weak-to-strong: {name} gives {figures['labels']:,} labels{right}; {figures['left_out']:,} records "
        "are left out"
    )


def _shown(figures: Mapping[str, Any], digits: int = 3) -> str:
    low, high = (
        "unbounded" if figures[end] is None else f"{figures[end]:.{digits}f}" for end in ("low", "high")
    )
    return f"{figures['value']:.{digits}f} [{low}, {high}]"


def _say(workspace: Workspace, figures: Mapping[str, Any]) -> None:
    """Three performances and the gap recovered; in words where nothing of it is."""
    held = figures["held_out"]
    first = next(iter(figures["chain"]))
    each = ", ".join(f"{name} {_shown(estimate)}" for name, estimate in held.items())
    left = figures["held_out_left_out"]
    long = f"; {left:,} others are too long for one of the models and left out" if left else ""
    workspace.say(
        f"weak-to-strong, {figures['measured_by']}: {each}, over {held['student']['n']} items{long}"
    )
    if "no_gap" in figures:
        workspace.say(f"weak-to-strong: no performance gap recovered can be given: {figures['no_gap']}")
    elif "pgr" in figures:
        low, high = figures["pgr"]["low"], figures["pgr"]["high"]
        verdict = "" if low is not None and low > 0 else "; it may be that nothing is recovered"
        if high is not None and high < 0:
            verdict = "; the student is worse than the supervisor that taught it"
        workspace.say(f"weak-to-strong: performance gap recovered {_shown(figures['pgr'], 2)}{verdict}")
    workspace.say(f"weak-to-strong: student over {first} {_shown(figures['gain'])}")


def weak_to_strong(workspace: Workspace) -> None:
    """Train the base model on the labels of the recipe's chain of supervisors, and measure what comes
    through.

    Raises:
        DataError: too few records, or no labels of use.
        ConfigError: a bag of words that is to write answers, or stands behind the first place.
    """
    section = workspace.recipe.weak_to_strong
    base = workspace.load("base")
    data: FeedbackData[Any] = (
        pairs(workspace) if section.labels == "preferences" else demonstrations(workspace)
    )
    links = enumerate(section.chain, 1)
    supervisors = {
        f"supervisor {n}": model_hash(locate_model(link.path).folder) for n, link in links if link.path
    }
    parents = {**parents_of(workspace, base, data), **supervisors}
    begun = begin_stage(workspace, "weak_to_strong", section.model_dump(mode="json"), parents)
    if begun.done:
        return
    if section.labels == "preferences":
        student, figures = _taught(workspace, begun, base, PreferenceLabels(workspace, data), parents)
    else:
        student, figures = _taught(workspace, begun, base, AnswerLabels(workspace, data), parents)
    _say(workspace, figures)
    workspace.finish(
        begun.folder,
        results=figures,
        model=student,
        parents=[*data.records, workspace.base_record(base)],
    )


def _taught(
    workspace: Workspace,
    begun: Begun,
    base: LoadedModel,
    task: WeakTask[Item, Label, Taught],
    made_from: dict[str, str],
) -> tuple[str, dict[str, Any]]:
    """Hash of the saved student, and the figures."""
    student, figures = _teach(workspace, begun, base, task)
    return task.save(student, made_from), figures
