"""HH-RLHF: two transcripts a row, `\\n\\nHuman: ...\\n\\nAssistant: ...`, alike up to the last answer.

Source: Bai et al. 2022, arXiv 2204.05862. The white space around a turn is the transcript's layout and is
    taken off.
"""

import re
from typing import Final

from trueward.data.formats.base import Columns, Format, split_answer, text
from trueward.data.records import Comparison, Message, Meta, Record, RecordError

__all__ = ["FORMATS", "transcript"]

_TURN: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


def transcript(value: str, name: str) -> tuple[Message, ...]:
    """The turns of a transcript.

    Raises:
        RecordError: it does not start with a turn.
    """
    before, *parts = _TURN.split(value)
    if before.strip() or not parts:
        raise RecordError(name, value, r"a transcript that starts with '\n\nHuman:'")
    return tuple(
        Message(_ROLES[role], body.strip()) for role, body in zip(parts[::2], parts[1::2], strict=True)
    )


def _read(row: Columns, id: str, meta: Meta) -> Record:
    ask, chosen = split_answer(transcript(text(row, "chosen"), "chosen"), "chosen")
    other, rejected = split_answer(transcript(text(row, "rejected"), "rejected"), "rejected")
    for name, last in (("chosen", chosen), ("rejected", rejected)):
        if not last:
            raise RecordError(
                name, row[name][-60:], "an answer after the last 'Assistant:'", what="empty last turn"
            )
    if ask != other:
        raise RecordError(
            "rejected",
            [m.content for m in other][-1],
            "the turns of chosen but the last",
            what="the prompts of chosen and rejected differ",
        )
    return Comparison(id=id, prompt=ask, chosen=chosen, rejected=rejected, meta=meta)


def _matches(row: Columns) -> bool:
    chosen = row.get("chosen")
    return "rejected" in row and isinstance(chosen, str) and bool(_TURN.match(chosen))


FORMATS: Final = (
    Format(
        name="hh-rlhf",
        words="HH-RLHF transcripts (chosen, rejected)",
        kind="comparison",
        columns=frozenset({"chosen", "rejected"}),
        matches=_matches,
        read=_read,
    ),
)
