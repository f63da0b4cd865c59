"""What PRM and ORM learn from: solutions in steps with labels, from the data's own files or from rollouts.

Solutions without a label, and exact repeats, are left out, counted and said.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from trueward.core.errors import ConfigError, DataError
from trueward.data.chat import Dropped
from trueward.data.records import Label, Record, StepLabels
from trueward.data.split import prompt_key
from trueward.data.steps import StepGroup, outcome_label, tokenise_steps
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, asked_records, feedback_kinds
from trueward.pipeline.rollout_labels import rollout_labels, step_end
from trueward.pipeline.workspace import Workspace
from trueward.trainers.process import ProcessSettings
from trueward.trainers.step_model import Target

__all__ = ["Solutions", "Source", "labelled_solutions", "solutions", "source_of"]

Source = Literal["files", "rollouts"]
_KINDS: Mapping[Target, str] = MappingProxyType({"steps": "steps with labels", "outcome": "a known outcome"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """One split, tokenised.

    problems: of each item, what is the same for all solutions of one problem.
    """

    items: list[StepGroup]
    records: list[StepLabels]
    dropped: list[Dropped]

    @property
    def problems(self) -> list[str]:
        return [prompt_key(record) for record in self.records]


def _cut(text: str, end: str) -> tuple[str, ...]:
    """A text in steps, as `data.steps.drawn_steps` cuts it."""
    parts = re.split(f"(?<={re.escape(end)})", text)
    return tuple(part.strip() for part in parts if part.strip())


def _steps(record: Record, end: str) -> StepLabels | None:
    labelled = isinstance(record, StepLabels) and any(label is not None for label in record.labels)
    return record if isinstance(record, StepLabels) and labelled else None


def _outcome(record: Record, end: str) -> StepLabels | None:
    """The solution with its outcome at the end: of a labelled answer, or where rollouts have left it."""
    if isinstance(record, Label):
        steps = _cut(record.completion, end)
        whole = StepLabels(
            id=record.id, prompt=record.prompt, steps=steps, labels=(None,) * len(steps), meta=record.meta
        )
        return outcome_label(whole, right=record.label)
    if isinstance(record, StepLabels) and isinstance(record.meta.extra.get("outcome"), bool):
        return outcome_label(record, right=bool(record.meta.extra["outcome"]))
    return None


_READ: Mapping[Target, Callable[[Record, str], StepLabels | None]] = MappingProxyType(
    {"steps": _steps, "outcome": _outcome}
)


_SOURCES: Mapping[Source, Callable[[Workspace], FeedbackData[Record]]] = MappingProxyType(
    {"files": asked_records, "rollouts": rollout_labels}
)


def source_of(workspace: Workspace) -> Source:
    """Where labels come from: as the recipe says, else from the files where they hold any.

    Raises:
        ConfigError: the recipe says files, and there are none.
    """
    recipe = workspace.recipe
    if recipe.data.source == "testbed":
        if recipe.steps.labels == "files":
            raise ConfigError(
                "the testbed has no files with labelled steps", remedy="set steps.labels=rollouts"
            )
        return "rollouts"
    held = {"steps", "label"} & feedback_kinds(workspace)
    return recipe.steps.labels or ("files" if held else "rollouts")


def solutions(workspace: Workspace) -> FeedbackData[Record]:
    """Records that may hold labelled solutions, both splits."""
    return _SOURCES[source_of(workspace)](workspace)


def labelled_solutions(
    workspace: Workspace,
    loaded: LoadedModel,
    records: Sequence[Record],
    *,
    target: Target,
    process: ProcessSettings,
    split: str,
) -> Solutions:
    """The solutions of a split that say what `target` wants to know, each once, as tokens.

    Raises:
        DataError: there is none, or all labels are alike.
    """
    end, from_files, found = step_end(workspace), source_of(workspace) == "files", dict[object, StepLabels]()
    without = repeats = 0
    for record in records:
        solution = _READ[target](record, end)
        if solution is None:
            without += 1
            continue
        # Drawn solutions repeat as often as the policy gives them; a row of a file that repeats says nothing.
        key = (solution.prompt, solution.steps, solution.labels) if from_files else record.id
        repeats += key in found
        found.setdefault(key, solution)
    kept = list(found.values())
    labels = [label for solution in kept for label in solution.labels if label is not None]
    wrong = sum(not process.right(label) for label in labels)
    _check(split, target, num_records=len(records), labels=labels, wrong=wrong)
    made = list(tokenise_steps(loaded.tokenizer, kept, max_tokens=workspace.recipe.data.max_tokens))
    pairs = [(item, r) for item, r in zip(made, kept, strict=True) if isinstance(item, StepGroup)]
    left_out = f"; {without:,} records without {_KINDS[target]} and {repeats:,} repeats are left out"
    workspace.say(
        f"{split} split: {len(kept):,} solutions of {len({prompt_key(r) for r in kept}):,} problems, "
        f"{len(labels):,} labels, {wrong:,} of them wrong{left_out if without or repeats else ''}"
    )
    return Solutions(
        items=[item for item, _ in pairs],
        records=[record for _, record in pairs],
        dropped=[item for item in made if isinstance(item, Dropped)],
    )


def _check(split: str, target: Target, *, num_records: int, labels: Sequence[int], wrong: int) -> None:
    more = "give more data" if split == "training" else "raise data.test_share or give more data"
    if not labels:
        raise DataError(
            f"the {split} split holds no solution with {_KINDS[target]}",
            value=f"{num_records:,} records",
            expected="rows of PRM800K, TRL's stepwise rows" if target == "steps" else "labelled answers",
            remedy="give such data" if split == "training" else more,
        )
    if wrong in (0, len(labels)):
        two_valued = target == "steps" and set(labels) == {0, 1}
        raise DataError(
            f"all labels of the {split} split are alike",
            value=f"{len(labels):,} {'wrong' if wrong else 'right'}",
            expected="some of both",
            remedy="where 0 is wrong and not neutral, set prm.objective.neutral_is_right=false"
            if two_valued
            else more,
        )
