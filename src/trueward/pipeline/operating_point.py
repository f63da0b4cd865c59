"""The charter's operating point that a recipe names: its system prompt in front of every prompt.

Records on disk stay as they are; the turn is put there when a stage reads them. Not here: what is trained or
measured under it.
"""

from dataclasses import replace

from trueward.charter import Charter, OperatingPoint
from trueward.core.errors import ConfigError, DataError, ModelError, nearest
from trueward.data.records import Demonstration, Message, Prompt, Record, Text
from trueward.data.template import render
from trueward.models.load import LoadedModel

__all__ = ["check_system_role", "named_point", "own_system", "under"]


def named_point(charter: Charter, name: str | None) -> OperatingPoint | None:
    """The operating point of that name; None names none.

    Raises:
        ConfigError: the charter has no such operating point.
    """
    if name is None:
        return None
    points = charter.operating_points
    if name not in points:
        raise ConfigError(f"the charter has no operating point {name!r}", remedy=nearest(name, points))
    return points[name]


def check_system_role(loaded: LoadedModel, *, name: str, system: str) -> None:
    """Refuse a chat template that would not send the system prompt.

    Raises:
        ModelError: it refuses a system turn, or leaves its text out.
    """
    why = "it leaves the system turn out"
    try:
        turns = (Message("system", system), Message("user", "question"))
        if system.strip() in render(loaded.tokenizer, turns, ask=True):
            return
    except DataError as error:
        why = error.what
    raise ModelError(
        f"the chat template of {loaded.path} cannot send operating point {name!r}: {why}",
        remedy="use a model whose template has a system role, or leave out operating_point",
    )


def _first(record: Record) -> tuple[Message, ...]:
    if isinstance(record, Text):
        return ()
    return record.messages if isinstance(record, Prompt | Demonstration) else record.prompt


def own_system(record: Record, system: str) -> bool:
    """Whether the record begins with a system turn that is not `system`."""
    first = _first(record)[:1]
    return any(message.role == "system" and message.content != system for message in first)


def under(record: Record, system: str) -> Record:
    """The record with a system turn in front. One that has one keeps it; running text has no turns."""
    messages = _first(record)
    if not messages or messages[0].role == "system":
        return record
    turns = (Message("system", system), *messages)
    if isinstance(record, Prompt | Demonstration):
        return replace(record, messages=turns)
    assert not isinstance(record, Text), "running text has no turns"
    return replace(record, prompt=turns)
