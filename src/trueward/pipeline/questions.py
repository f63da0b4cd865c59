"""Questions whose answers can be verified: which records are asked, and what the data says is right."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.data.convert import as_prompt
from trueward.data.records import Message, Prompt, Record
from trueward.models.load import LoadedModel
from trueward.pipeline.answers import reference_of_record
from trueward.pipeline.sampling import prompt_ids
from trueward.pipeline.workspace import Workspace
from trueward.testbed import task_of
from trueward.trainers.verified import Question

__all__ = ["AskedQuestions", "Asking", "asked_questions"]


class Asking(Protocol):
    """The keys of a section that say what is asked: `grpo` and `questions` both have them."""

    @property
    def answer(self) -> str | None: ...
    @property
    def kinds(self) -> Sequence[str]: ...


class AskedQuestions(NamedTuple):
    """Prompts that have an answer, as tokens; `questions` by the id of a group."""

    prompts: list[Prompt]
    groups: list[TokenGroup]
    questions: dict[str, Question]


def _reference(workspace: Workspace, record: Record, section: Asking) -> str:
    if workspace.recipe.data.source == "testbed":
        task = task_of(record.meta)
        return task.answer if task.kind in section.kinds else ""
    return reference_of_record(record, section.answer)


def asked_questions(
    workspace: Workspace,
    policy: LoadedModel,
    records: Sequence[Record],
    *,
    split: str,
    section: Asking,
    key: str,
    max_new_tokens: int,
    who: str,
) -> AskedQuestions:
    """The usable prompts with their answers, each conversation once; what is left out is counted and said.

    Args:
        key: name of the section in the recipe, for the remedy.
        max_new_tokens: room that every prompt leaves within `data.max_tokens`.
        who: asks, for the sentence.

    Raises:
        DataError: no record says what is right, or no prompt is short enough.
    """
    found: dict[tuple[Message, ...], tuple[Prompt, str]] = {}
    for record in records:
        if reference := _reference(workspace, record, section).strip():
            prompt = as_prompt(record)
            found.setdefault(prompt.messages, (prompt, reference))
    if not found:
        raise DataError(
            f"no record of the {split} split says what is right",
            value=len(records),
            expected="demonstrations, or a column with the answer",
            remedy=f"name the column: {key}.answer=...",
        )
    prompts = [prompt for prompt, _ in found.values()]
    kept, groups = prompt_ids(policy, prompts, max_tokens=workspace.recipe.data.max_tokens - max_new_tokens)
    without, long = len(records) - len(found), len(prompts) - len(kept)
    workspace.say(
        f"{who}: {len(kept):,} of {len(records):,} records of the {split} split are asked; {without:,} have "
        f"no answer of the wanted kind or a prompt that was there before, {long:,} are too long"
    )
    answers = [reference for _, reference in found.values()]
    questions = {
        group.id: Question(prompts[index].messages[-1].content, answers[index])
        for index, group in zip(kept, groups, strict=True)
    }
    return AskedQuestions([prompts[index] for index in kept], groups, questions)
