"""Several completions of each prompt, and what the run's own judges say of them: PRM, ORM, reward model.

Axes: P prompts, N completions of each.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.records import Message, Prompt, RecordError, StepLabels
from trueward.data.steps import StepGroup, drawn_steps, tokenise_steps
from trueward.decoding import solution_scores
from trueward.models.load import LoadedModel
from trueward.pipeline.sampling import text_of
from trueward.pipeline.workspace import Workspace
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine
from trueward.trainers.process import score_steps
from trueward.trainers.reward import reward_function
from trueward.trainers.step_model import StepModel, load_steps

__all__ = ["Candidates", "Floats", "Judged", "draw_candidates", "judged_by", "reward_scores"]

Floats = NDArray[np.float64]
_Way = Literal["min", "product", "last"]
# How the steps' scores become one score of the completion, by stage.
_WAYS: Mapping[str, tuple[_Way, ...]] = MappingProxyType({"prm": ("min", "product"), "orm": ("last",)})


class Candidates(NamedTuple):
    """N completions of each prompt. texts_PN: without special tokens."""

    groups: list[TokenGroup]
    prompts: list[Prompt]
    rollouts: list[Rollout]
    texts_PN: list[list[str]]
    unfinished: int

    def table(self, values: Sequence[float]) -> Floats:
        """Figures of the completions, one row a prompt."""
        return np.reshape(np.array(values, dtype=np.float64), (len(self.groups), -1))


def draw_candidates(
    workspace: Workspace, policy: LoadedModel, prompts: list[Prompt], groups: list[TokenGroup], count: int
) -> Candidates:
    """`count` completions of each prompt, with a bar."""
    section = workspace.recipe.best_of_n
    engine = LocalEngine(policy.model, stop_ids(policy.tokenizer))
    with workspace.bar("best of n", len(groups) * count) as bar:
        rollouts = engine.generate(
            [group.prompt_ids for group in groups],
            num_completions=count,
            max_new_tokens=section.max_new_tokens,
            temperature=section.temperature,
            seed=workspace.seed("best_of_n"),
            on_progress=lambda done, total: bar.update(done),
        )
    texts = [text_of(policy, rollout) for rollout in rollouts]
    rows = [texts[start : start + count] for start in range(0, len(texts), count)]
    return Candidates(groups, prompts, rollouts, rows, sum(not r.finished for r in rollouts))


def _solution(name: str, asked: tuple[Message, ...], steps: tuple[str, ...]) -> StepLabels | None:
    """A drawn solution as a record without labels; None where no record can hold it (no step, NUL)."""
    try:
        return StepLabels(id=name, prompt=asked, steps=steps, labels=(None,) * len(steps))
    except RecordError:
        return None


def _step_logps(workspace: Workspace, judge: StepModel, drawn: Candidates) -> list[tuple[float, ...]]:
    """Of each completion, the log-probability of each step that it is right; empty where it has no step, or
    cannot be read by the judge. Equal texts are scored once."""
    tokenizer = judge.loaded.tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    stops = stop_ids(tokenizer)
    records: dict[tuple[int, tuple[int, ...]], StepLabels | None] = {}
    keys = []
    for rollout in drawn.rollouts:
        ids = rollout.ids[:-1] if rollout.ids[-1] in stops else rollout.ids
        keys.append((rollout.prompt, ids))
        if keys[-1] in records:
            continue
        steps = tuple(step.text for step in drawn_steps(ids, decode=decode, end=judge.step_end))
        asked = drawn.prompts[rollout.prompt].messages
        records[keys[-1]] = _solution(str(len(records)), asked, steps)
    longest = workspace.recipe.data.max_tokens
    wanted = {key: record for key, record in records.items() if record is not None}
    made = dict(zip(wanted, tokenise_steps(tokenizer, wanted.values(), max_tokens=longest), strict=True))
    items = {key: item for key, item in made.items() if isinstance(item, StepGroup)}
    scores = score_steps(
        judge.loaded.model,
        list(items.values()),
        process=judge.process,
        max_tokens_per_forward=workspace.recipe.eval.max_tokens_per_forward,
    )
    found = dict(zip(items, scores, strict=True))
    return [found.get(key, ()) for key in keys]


def _aggregated(logps: Sequence[Sequence[float]], how: _Way) -> list[float]:
    """One score a completion; minus infinity for one that could not be scored."""
    kept = [row for row in logps if row]
    if how == "last":
        scores = iter([row[-1] for row in kept])
    else:
        scores = iter(solution_scores(kept, aggregation=how) if kept else [])
    return [next(scores) if row else -math.inf for row in logps]


class Judged(NamedTuple):
    """Scores of the completions by judge, minus infinity where it could not score one; and how many those
    were, by stage."""

    scores: dict[str, Floats]
    unscored: dict[str, int]


def judged_by(workspace: Workspace, drawn: Candidates) -> Judged:
    """What every judge that the run has says of the completions."""
    found = Judged({}, {})
    for stage, ways in _WAYS.items():
        if workspace.has(stage):
            judge = load_steps(workspace.model_path(stage), device=workspace.device)
            logps = _step_logps(workspace, judge, drawn)
            found.unscored[stage] = sum(not row for row in logps)
            for way in ways:
                name = stage if way == "last" else f"{stage} {way}"
                found.scores[name] = drawn.table(_aggregated(logps, way))
    if workspace.has("reward"):
        found.scores["reward model"] = drawn.table(reward_scores(workspace, drawn))
    return found


def reward_scores(workspace: Workspace, drawn: Candidates) -> list[float]:
    """The reward model's score of every completion."""
    budget = workspace.recipe.eval.max_tokens_per_forward
    return reward_function(workspace.load_reward().model, max_tokens_per_forward=budget)(
        drawn.groups, drawn.rollouts
    )
