"""Export: records as the rows that TRL and OpenAI read, in JSON lines. What a form cannot hold raises.

`meta` is not exported: neither form has a place for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trueward.core.errors import ConfigError, DataError, nearest
from trueward.core.files import write_jsonl
from trueward.data.records import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Ranking,
    Record,
    StepLabels,
    Text,
    kind_of,
)

__all__ = ["EXPORTS", "export_file", "openai_row", "trl_conversational_row", "trl_standard_row"]


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def _cannot(record: Record, form: str, remedy: str) -> DataError:
    return DataError(f"record {record.id}: {form} has no form for this {kind_of(record)}", remedy=remedy)


def _pair_columns(record: Comparison) -> dict[str, Any]:
    columns = {"margin": record.margin, "soft_label": record.soft_label}
    return {key: value for key, value in columns.items() if value is not None}


def trl_conversational_row(record: Record) -> dict[str, Any]:
    """The row of TRL's conversational type.

    Raises:
        DataError: a ranking.
    """
    match record:
        case Text():
            return {"text": record.text}
        case Prompt():
            return {"prompt": _messages(record.messages)}
        case Demonstration():
            return {"messages": _messages(record.messages)}
        case Comparison():
            pair = {"chosen": _answer(record.chosen), "rejected": _answer(record.rejected)}
            return {"prompt": _messages(record.prompt), **pair, **_pair_columns(record)}
        case Label():
            completion = _answer(record.completion)
            return {"prompt": _messages(record.prompt), "completion": completion, "label": record.label}
        case StepLabels():
            steps = {"completions": list(record.steps), "labels": list(record.labels)}
            shares = {} if record.soft_labels is None else {"soft_labels": list(record.soft_labels)}
            return {"prompt": _messages(record.prompt), **steps, **shares}
        case Ranking():
            raise _cannot(record, "TRL", "convert it to a comparison first")


def _single(record: Record, messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0].role != "user":
        raise _cannot(
            record, "TRL standard", "it has more than one user message; export it as trl-conversational"
        )
    return messages[0].content


def trl_standard_row(record: Record) -> dict[str, Any]:
    """The row of TRL's standard type, for prompts of one user message.

    Raises:
        DataError: a ranking, or a prompt of several messages.
    """
    match record:
        case Prompt():
            return {"prompt": _single(record, record.messages)}
        case Demonstration():
            answer = record.messages[-1].content
            return {"prompt": _single(record, record.messages[:-1]), "completion": answer}
        case Comparison():
            pair = {"chosen": record.chosen, "rejected": record.rejected, **_pair_columns(record)}
            return {"prompt": _single(record, record.prompt), **pair}
        case Label():
            ask = _single(record, record.prompt)
            return {"prompt": ask, "completion": record.completion, "label": record.label}
        case StepLabels():
            return {**trl_conversational_row(record), "prompt": _single(record, record.prompt)}
        case Text() | Ranking():
            return trl_conversational_row(record)


def openai_row(record: Record) -> dict[str, Any]:
    """The row of OpenAI's fine-tuning files: messages, or a preference.

    Raises:
        DataError: neither a demonstration nor a comparison, or one with margin or soft label.
    """
    match record:
        case Demonstration():
            return {"messages": _messages(record.messages)}
        case Comparison() if not _pair_columns(record):
            return {
                "input": {"messages": _messages(record.prompt)},
                "preferred_output": _answer(record.chosen),
                "non_preferred_output": _answer(record.rejected),
            }
        case _:
            raise _cannot(record, "OpenAI", "export it as trl-conversational")


EXPORTS: Final[Mapping[str, Callable[[Record], dict[str, Any]]]] = {
    "trl-conversational": trl_conversational_row,
    "trl-standard": trl_standard_row,
    "openai": openai_row,
}


def _rows(records: Iterable[Record], make: Callable[[Record], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    kind = ""
    for record in records:
        kind = kind or kind_of(record)
        if kind_of(record) != kind:
            raise DataError(
                f"record {record.id} is a {kind_of(record)} among {kind} records",
                expected="one kind a file",
                remedy="export each kind on its own",
            )
        yield {"id": record.id, **make(record)}


def export_file(records: Iterable[Record], path: Path, *, form: str = "trl-conversational") -> int:
    """Write records of one kind as JSON lines, streaming, atomically.

    Args:
        form: trl-conversational, trl-standard or openai.

    Returns:
        The number of rows.

    Raises:
        ConfigError: an unknown form.
        DataError: mixed kinds, or a record that the form cannot hold.
        StorageError: the disk refuses; an older file of this name is untouched.
    """
    if form not in EXPORTS:
        raise ConfigError(f"unknown export form {form!r}", remedy=nearest(form, EXPORTS))
    return write_jsonl(path, _rows(records, EXPORTS[form]))
