"""The distillation stage: the SFT model learns from a teacher, on its own answers; the gap that this closes.

The teacher is any causal language model with the student's tokenizer and chat template. Measured on held-out
prompts are the true reward on the testbed, else that of the reward model where the run has one, and always
the KL of student and teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueward.core.errors import ConfigError, EvidenceError
from trueward.core.stats import Estimate, bootstrap_mean, paired_difference
from trueward.data.chat import TokenGroup, stop_ids
from trueward.evals import kl_to_ref, performance_gap_recovered
from trueward.models.load import LoadedModel, load_causal
from trueward.pipeline.datasets import FeedbackData, demonstrations, test_prompts
from trueward.pipeline.ppo import gold_of
from trueward.pipeline.recipe import DistillSection
from trueward.pipeline.sampling import prompt_ids
from trueward.pipeline.training import (
    begin_stage,
    card,
    check,
    parents_of,
    save_policy,
    settings_of,
    tokenised,
    training_figures,
)
from trueward.pipeline.workspace import Begun, Workspace, hub_origin
from trueward.rollouts.local import LocalEngine
from trueward.trainers.distill import train_distill
from trueward.trainers.experience import RewardFunction
from trueward.trainers.groups import rollout_groups
from trueward.trainers.loop import TrainResult
from trueward.trainers.reward import reward_function
from trueward.trainers.sampling import num_steps

__all__ = ["distill"]


class _Held(NamedTuple):
    """Held-out prompts, and what scores an answer to them; None where nothing does.

    score_name: `gold` or `reward`.
    """

    groups: list[TokenGroup]
    score: RewardFunction | None
    score_name: str


class _Looked(NamedTuple):
    """One model on the held-out prompts: scores answer by answer (empty without a score), and
    KL(model || teacher) in nats an answer."""

    scores: NDArray[np.float64]
    kl: Estimate | None


def _teacher(workspace: Workspace, student: LoadedModel) -> LoadedModel:
    """The teacher, which must read and write the student's tokens.

    Raises:
        ConfigError: none is named, or it has another vocabulary or chat template.
    """
    path = workspace.recipe.distill.teacher
    if path is None:
        raise ConfigError(
            "distill.teacher is missing", remedy="name the folder or hub id of a model: distill.teacher=..."
        )
    loaded = load_causal(path, dtype=workspace.recipe.model.dtype, device=workspace.device)
    mine, theirs = student.tokenizer.get_vocab(), loaded.tokenizer.get_vocab()
    if mine != theirs:
        odd = sorted(word for word in {*mine, *theirs} if mine.get(word) != theirs.get(word))
        raise ConfigError(
            f"the teacher {path} has another vocabulary than the student, so their words cannot be compared",
            value=f"{len(odd):,} of {len({*mine, *theirs}):,} words differ, such as {odd[0]!r}",
            expected="the same tokenizer",
            remedy="take a teacher of the student's family",
        )
    if loaded.template_hash != student.template_hash:
        raise ConfigError(
            f"the teacher {path} has another chat template than the student",
            expected="the same, so that the teacher is asked as it was trained",
            remedy="copy the teacher's template into the base model before SFT",
        )
    return loaded


def _asked(
    workspace: Workspace, student: LoadedModel, section: DistillSection, data: FeedbackData[Any]
) -> tuple[list[TokenGroup], dict[str, object]]:
    """Demonstrations as tokens, checked; a drawn answer must fit as well."""
    longest = workspace.recipe.data.max_tokens
    groups, dropped = tokenised(student, data.train, max_tokens=longest)
    counts = check(workspace, student, groups, dropped)
    room = longest - section.objective.max_new_tokens
    kept = [group for group in groups if len(group.prompt_ids) <= room]
    if len(kept) < len(groups):
        workspace.say(
            f"distillation: {len(groups) - len(kept):,} of {len(groups):,} prompts are longer than {room} "
            "tokens, which leaves too little room for an answer, and are left out"
        )
        counts |= check(workspace, student, kept, quiet=True)
    return kept, counts


def _held(workspace: Workspace, student: LoadedModel) -> _Held:
    recipe = workspace.recipe
    prompts = test_prompts(workspace).prompts
    longest = recipe.data.max_tokens - recipe.eval.max_new_tokens
    kept, groups = prompt_ids(student, prompts, max_tokens=longest)
    if recipe.data.source == "testbed":
        return _Held(groups, gold_of(student, [prompts[i] for i in kept]), "gold")
    if not workspace.has("reward"):
        return _Held(groups, None, "")
    scorer = workspace.load_reward()
    budget = recipe.distill.train.max_tokens_per_forward
    return _Held(groups, reward_function(scorer.model, max_tokens_per_forward=budget), "reward")


def _look(workspace: Workspace, loaded: LoadedModel, held: _Held, teacher: LoadedModel | None) -> _Looked:
    """One answer to each held-out prompt, drawn from the same noise by every model.

    Args:
        teacher: to measure the KL to; None measures none.
    """
    recipe = workspace.recipe
    rollouts = LocalEngine(loaded.model, stop_ids(loaded.tokenizer)).generate(
        [group.prompt_ids for group in held.groups],
        num_completions=1,
        max_new_tokens=recipe.eval.max_new_tokens,
        temperature=1.0,
        seed=workspace.seed("distill", "held out"),
    )
    scores = [] if held.score is None else held.score(held.groups, rollouts)
    if teacher is None:
        return _Looked(np.asarray(scores, dtype=np.float64), None)
    answered = rollout_groups(held.groups, rollouts)
    budget = recipe.distill.train.max_tokens_per_forward
    report = kl_to_ref(loaded.model, teacher.model, answered, max_tokens=budget)
    return _Looked(np.asarray(scores, dtype=np.float64), report.exact)


def _figures(held: _Held, before: _Looked, after: _Looked, teacher: _Looked) -> dict[str, Any]:
    """What distillation brought, with intervals over prompts."""
    assert before.kl is not None and after.kl is not None, "both are measured against the teacher"
    figures: dict[str, Any] = {"kl": {"before": before.kl._asdict(), "after": after.kl._asdict()}}
    if held.score is None:
        return figures
    figures["score"] = {
        "name": held.score_name,
        "before": bootstrap_mean(before.scores)._asdict(),
        "after": bootstrap_mean(after.scores)._asdict(),
        "teacher": bootstrap_mean(teacher.scores)._asdict(),
        "gain": paired_difference(after.scores, before.scores)._asdict(),
    }
    try:
        gap = performance_gap_recovered(before.scores, after.scores, teacher.scores)
    except EvidenceError as error:
        return {**figures, "no_gap": str(error)}
    bounds = {key: value if np.isfinite(value) else None for key, value in gap.recovered._asdict().items()}
    return {**figures, "gap_closed": bounds}


def _shown(figures: Mapping[str, Any], digits: int = 2) -> str:
    low, high = (
        "unbounded" if figures[key] is None else f"{figures[key]:.{digits}f}" for key in ("low", "high")
    )
    return f"{figures['value']:.{digits}f} [{low}, {high}]"


def _say(workspace: Workspace, figures: Mapping[str, Any]) -> None:
    kl = figures["kl"]
    workspace.say(
        f"distillation, held out: KL(student || teacher) {_shown(kl['before'])} nats an answer before, "
        f"{_shown(kl['after'])} after, over {kl['after']['n']} prompts"
    )
    if "score" not in figures:
        workspace.say("distillation: the run has no reward model, so nothing but the KL is measured here")
        return
    score = figures["score"]
    head = f"distillation, held out: {score['name']}"
    three = ", ".join(f"{name} {_shown(score[name])}" for name in ("before", "after", "teacher"))
    closed = (
        f"gap closed {_shown(figures['gap_closed'])}"
        if "gap_closed" in figures
        else f"no gap to close: {figures['no_gap']}"
    )
    workspace.say(f"{head} {three}; gain {_shown(score['gain'])}; {closed}")


def _train(
    workspace: Workspace,
    begun: Begun,
    student: LoadedModel,
    teacher: LoadedModel,
    groups: Sequence[TokenGroup],
) -> TrainResult:
    section = workspace.recipe.distill
    settings = settings_of(workspace, "distill", section.train)
    with workspace.bar("distillation", num_steps(settings, len(groups))) as bar:
        result = train_distill(
            student.model,
            groups,
            teacher=teacher.model,
            stop_ids=stop_ids(student.tokenizer),
            distill=section.objective,
            settings=settings,
            folder=begun.folder.path,
            bar=bar,
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    return result


def distill(workspace: Workspace) -> None:
    """Distil the teacher that the recipe names into the SFT model.

    Raises:
        ConfigError: no teacher, or one of other tokens.
        DataError: no prompt can be used.
    """
    section = workspace.recipe.distill
    student, data = workspace.load_to_train("sft"), demonstrations(workspace)
    teacher = _teacher(workspace, student)
    parents = {**parents_of(workspace, student, data), "teacher": teacher.hash}
    begun = begin_stage(workspace, "distill", section.model_dump(mode="json"), parents)
    if begun.done:
        return
    groups, counts = _asked(workspace, student, section, data)
    held = _held(workspace, student)
    # A resumed run too begins with the SFT model; the checkpoint is read when training goes on.
    before = _look(workspace, student, held, teacher)
    result = _train(workspace, begun, student, teacher, groups)
    method, share = section.objective.method, section.objective.on_policy
    text = f"Distilled from {teacher.path} ({method}, {share:.0%} own answers) in {result.step:,} steps."
    readme = card(workspace, "distill", student, text=text, made_from=parents)
    model, digest = save_policy(student, begun, readme)
    after = _look(workspace, replace(student, model=model), held, teacher)
    figures = _figures(held, before, after, _look(workspace, teacher, held, None))
    _say(workspace, figures)
    workspace.finish(
        begun.folder,
        results={**training_figures(result), "preflight": counts, "held_out": figures},
        model=digest,
        parents=[*data.records, workspace.record_of("sft", "model"), _record(workspace, teacher)],
    )


def _record(workspace: Workspace, teacher: LoadedModel) -> str:
    """Registry id of the teacher; its name is that of its folder, or its hub id."""
    name = "/".join(Path(teacher.path).parts[-3:])
    body = {"name": f"teacher: {name}", "stage": "teacher", "hash": teacher.hash, **hub_origin(teacher)}
    return workspace.registry.put("model", body)
