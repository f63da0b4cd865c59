"""ShareGPT and Alpaca rows with LLaMA-Factory's additions (pairs, `kto_tag`), Dolly, GSM8K, MATH.

Source: LLaMA-Factory data/README.md. As there, `instruction` and `input` are joined with one newline.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trueward.data.formats.base import (
    Columns,
    Format,
    alpaca_text,
    answer,
    boolean,
    conversation,
    matches_columns,
    number,
    split_answer,
    text,
)
from trueward.data.records import Comparison, Demonstration, Label, Message, Meta, Prompt, Record, RecordError

__all__ = ["FORMATS"]


def _system(row: Columns) -> tuple[Message, ...]:
    system = text(row, "system", default="")
    return (Message("system", system),) if system else ()


def _sharegpt_messages(row: Columns) -> tuple[Message, ...]:
    messages = conversation(row.get("conversations"), "conversations")
    system = _system(row)
    if system and messages[0].role == "system":
        raise RecordError(
            "system", row["system"], "one system message, not one here and one in conversations"
        )
    return (*system, *messages)


def _alpaca_prompt(row: Columns) -> tuple[Message, ...]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RecordError("history", history, "a list of [question, answer]")
    turns: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError(f"history[{index}]", pair, "[question, answer]")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return (*_system(row), *turns, Message("user", alpaca_text(row)))


def _dolly_prompt(row: Columns) -> tuple[Message, ...]:
    parts = [text(row, "instruction"), text(row, "context", default="")]
    return (Message("user", "\n".join(part for part in parts if part)),)


def _demonstration(
    messages: Callable[[Columns], tuple[Message, ...]],
) -> Callable[[Columns, str, Meta], Record]:
    return lambda row, id, meta: Demonstration(id=id, messages=messages(row), meta=meta)


def _comparison(prompt: Callable[[Columns], tuple[Message, ...]]) -> Callable[[Columns, str, Meta], Record]:
    def read(row: Columns, id: str, meta: Meta) -> Record:
        return Comparison(
            id=id,
            prompt=prompt(row),
            chosen=answer(row.get("chosen"), "chosen"),
            rejected=answer(row.get("rejected"), "rejected"),
            margin=number(row, "margin"),
            meta=meta,
        )

    return read


def _label(messages: Callable[[Columns], tuple[Message, ...]]) -> Callable[[Columns, str, Meta], Record]:
    def read(row: Columns, id: str, meta: Meta) -> Record:
        ask, completion = split_answer(messages(row), "conversation")
        return Label(id=id, prompt=ask, completion=completion, label=boolean(row, "kto_tag"), meta=meta)

    return read


def _with(
    prompt: Callable[[Columns], tuple[Message, ...]], name: str
) -> Callable[[Columns], tuple[Message, ...]]:
    return lambda row: (*prompt(row), Message("assistant", text(row, name)))


def _question(row: Columns) -> tuple[Message, ...]:
    return (Message("user", text(row, "question")),)


def _problem(row: Columns) -> tuple[Message, ...]:
    return (Message("user", text(row, "problem")),)


def _family(name: str, words: str, columns: set[str], readers: Mapping[str, Any]) -> tuple[Format, ...]:
    needed = tuple(readers["needed"])
    return (
        Format(
            name=f"{name}-preference",
            words=f"{words} with chosen and rejected",
            kind="comparison",
            columns=frozenset(columns | {"chosen", "rejected", "margin"}),
            matches=matches_columns(needed[0], "chosen", "rejected"),
            read=_comparison(readers["prompt"]),
        ),
        Format(
            name=f"{name}-kto",
            words=f"{words} with kto_tag, good or bad",
            kind="label",
            columns=frozenset(columns | {"output", "kto_tag"}),
            matches=matches_columns(*needed, "kto_tag"),
            read=_label(readers["messages"]),
        ),
        Format(
            name=name,
            words=words,
            kind="demonstration",
            columns=frozenset(columns | {"output"}),
            matches=matches_columns(*needed),
            read=_demonstration(readers["messages"]),
        ),
    )


FORMATS: Final = (
    *_family(
        "sharegpt",
        "ShareGPT conversations",
        {"conversations", "system"},
        {"needed": ("conversations",), "prompt": _sharegpt_messages, "messages": _sharegpt_messages},
    ),
    *_family(
        "alpaca",
        "Alpaca instructions",
        {"instruction", "input", "system", "history"},
        {
            "needed": ("instruction", "output"),
            "prompt": _alpaca_prompt,
            "messages": _with(_alpaca_prompt, "output"),
        },
    ),
    Format(
        name="dolly",
        words="Dolly instructions (instruction, context, response)",
        kind="demonstration",
        columns=frozenset({"instruction", "context", "response"}),
        matches=matches_columns("instruction", "context", "response"),
        read=_demonstration(_with(_dolly_prompt, "response")),
    ),
    Format(
        name="question-answer",
        words="questions and answers (question, answer), as GSM8K",
        kind="demonstration",
        columns=frozenset({"question", "answer"}),
        matches=lambda row: isinstance(row.get("question"), str) and isinstance(row.get("answer"), str),
        read=_demonstration(_with(_question, "answer")),
    ),
    Format(
        name="math",
        words="problems with solutions (problem, solution), as MATH",
        kind="demonstration",
        columns=frozenset({"problem", "solution"}),
        matches=matches_columns("problem", "solution"),
        read=_demonstration(_with(_problem, "solution")),
    ),
    Format(
        name="math-answer",
        words="problems with a final answer, kept in meta.extra (problem, answer)",
        kind="prompt",
        columns=frozenset({"problem"}),
        matches=matches_columns("problem", "answer", absent=("solution",)),
        read=lambda row, id, meta: Prompt(id=id, messages=_problem(row), meta=meta),
        verdicts=frozenset({"answer"}),
    ),
)
