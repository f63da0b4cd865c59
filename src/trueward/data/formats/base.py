"""What a format is, and the checked ways to take a field out of a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from trueward.data.records import Message, Meta, Record, RecordError

__all__ = [
    "Columns",
    "Format",
    "alpaca_text",
    "answer",
    "boolean",
    "conversation",
    "matches_columns",
    "number",
    "prompt",
    "split_answer",
    "text",
    "texts",
    "with_extra",
]

Columns: TypeAlias = Mapping[str, Any]

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One public format.

    Args:
        name: for `format=`.
        words: what it is, for the user.
        kind: the record kind it gives.
        columns: columns that the record holds; all others are kept in `meta.extra`.
        matches: whether a row looks like it.
        read: a row, its id and meta -> the record; raises RecordError for a bad row.
        verdicts: columns that decide about the record and are kept in `meta.extra` as well.
    """

    name: str
    words: str
    kind: str
    columns: frozenset[str]
    matches: Callable[[Columns], bool]
    read: Callable[[Columns, str, Meta], Record]
    verdicts: frozenset[str] = frozenset()


def matches_columns(*needed: str, absent: Sequence[str] = ()) -> Callable[[Columns], bool]:
    """A test that a row has all of `needed` and none of `absent`."""
    return lambda row: all(name in row for name in needed) and not any(name in row for name in absent)


def text(row: Columns, name: str, *, default: str | None = None) -> str:
    """A string field; missing or null gives `default` where there is one."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RecordError(name, value, "a string", what=None if name in row else f"column {name} is missing")
    return value


def texts(row: Columns, name: str) -> tuple[str, ...]:
    """A field that is a list of strings."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecordError(name, value, "a list of strings")
    return tuple(value)


def boolean(row: Columns, name: str) -> bool:
    """True or false; 0 and 1 and, since CSV has only strings, their names count too."""
    value = row.get(name)
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise RecordError(name, value, "true or false")


def number(row: Columns, name: str) -> float | None:
    """A number, or nothing where the field is missing, null or an empty CSV cell."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError as error:
            raise RecordError(name, value, "a number") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(name, value, "a number")
    try:
        return float(value)
    except OverflowError as error:
        raise RecordError(name, "a very large integer", "a number") from error


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        parts = [part.get("text") for part in value if part.get("type") == "text"]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise RecordError(where, value, "text; tool calls, images and other parts are not supported")


def conversation(value: object, name: str) -> tuple[Message, ...]:
    """A list of `{role, content}` or `{from, value}`, with the role names in use."""
    if not isinstance(value, list) or not value:
        raise RecordError(name, value, "a list of messages that is not empty")
    result = []
    for index, item in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(item, Mapping):
            raise RecordError(where, item, "an object with role and content, or from and value")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise RecordError(f"{where}.role", role, f"one of {', '.join(_ROLES)}")
        if item.get("tool_calls"):
            raise RecordError(
                f"{where}.tool_calls", item["tool_calls"], "no tool calls; they are not supported"
            )
        body = item["content"] if "content" in item else item.get("value")
        result.append(Message(_ROLES[role.lower()], _content(body, f"{where}.content")))
    return tuple(result)


def prompt(value: object, name: str) -> tuple[Message, ...]:
    """A prompt: a string, which becomes one user message, or a conversation."""
    return (Message("user", value),) if isinstance(value, str) else conversation(value, name)


def answer(value: object, name: str) -> str:
    """A completion: a string, one assistant message, or a list of exactly one."""
    if isinstance(value, str):
        return value
    messages = conversation([value] if isinstance(value, Mapping) else value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RecordError(name, value, "exactly one assistant message")
    return messages[0].content


def alpaca_text(row: Columns) -> str:
    """`instruction` and `input`, where there is one, joined with one newline as LLaMA-Factory does."""
    parts = [text(row, "instruction"), text(row, "input", default="")]
    return "\n".join(part for part in parts if part)


def split_answer(messages: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation as its prompt and the content of its last message, which must be the assistant's."""
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise RecordError(
            f"{name}[-1].role", messages[-1].role, "a conversation that ends with an assistant message"
        )
    return messages[:-1], messages[-1].content


def with_extra(meta: Meta, **values: Any) -> Meta:
    """`meta` with more in `extra`."""
    return replace(meta, extra={**meta.extra, **values})
