"""Seeing a record as another kind: a comparison's chosen answer as a demonstration, its prompt alone.

Only conversions that invent nothing; what cannot be converted raises, it is never dropped.
"""

from collections.abc import Callable
from typing import Final

from trueward.core.errors import ConfigError, nearest
from trueward.data.records import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Ranking,
    Record,
    RecordError,
    Text,
    kind_of,
)

__all__ = ["KINDS", "as_comparison", "as_demonstration", "as_prompt", "convert"]


def as_prompt(record: Record) -> Prompt:
    """The prompt alone.

    Raises:
        RecordError: a text has no prompt.
    """
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Text):
        raise RecordError("kind", "text", "a record with a prompt")
    messages = record.messages[:-1] if isinstance(record, Demonstration) else record.prompt
    return Prompt(id=record.id, messages=messages, meta=record.meta)


def as_demonstration(record: Record) -> Demonstration:
    """The conversation with the best answer: chosen, first ranked, or labelled good.

    Raises:
        RecordError: the record holds no answer known to be good.
    """
    if isinstance(record, Demonstration):
        return record
    if isinstance(record, Comparison):
        prompt, answer = record.prompt, record.chosen
    elif isinstance(record, Ranking):
        prompt, answer = record.prompt, record.completions[0]
    elif isinstance(record, Label) and record.label:
        prompt, answer = record.prompt, record.completion
    else:
        raise RecordError("kind", kind_of(record), "a record with an answer known to be good")
    return Demonstration(id=record.id, messages=(*prompt, Message("assistant", answer)), meta=record.meta)


def as_comparison(record: Record) -> Comparison:
    """Best against worst of a ranking; the margin is the difference of `scores` in `meta.extra`, 0 is a tie.

    Raises:
        RecordError: the record holds no two answers.
    """
    if isinstance(record, Comparison):
        return record
    if not isinstance(record, Ranking):
        raise RecordError("kind", kind_of(record), "a comparison or a ranking")
    scores = record.meta.extra.get("scores")
    margin = float(scores[0] - scores[-1]) if isinstance(scores, list | tuple) else None
    return Comparison(
        id=record.id,
        prompt=record.prompt,
        chosen=record.completions[0],
        rejected=record.completions[-1],
        margin=margin,
        soft_label=0.5 if margin == 0 else None,
        meta=record.meta,
    )


KINDS: Final[dict[str, Callable[[Record], Record]]] = {
    "prompt": as_prompt,
    "demonstration": as_demonstration,
    "comparison": as_comparison,
}


def convert(record: Record, kind: str) -> Record:
    """The record as `kind`; unchanged if it is of that kind already.

    Raises:
        ConfigError: nothing converts to `kind`.
        RecordError: this record does not.
    """
    if kind_of(record) == kind:
        return record
    if kind not in KINDS:
        raise ConfigError(f"nothing converts to the record kind {kind!r}", remedy=nearest(kind, KINDS))
    return KINDS[kind](record)
