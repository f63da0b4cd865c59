"""Solutions in steps as token groups whose step ends are known: by prefix difference, nothing truncated.

The prompt is what the template renders with the generation prompt; behind it each step stands with a newline
that closes it. A step's end is its last token. There is no end of turn: more steps may follow.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from trueward.core.errors import DataError
from trueward.data.chat import NO_PREFIX, REFUSED, SPECIAL, TOO_LONG, Completion, Dropped, TokenGroup
from trueward.data.records import StepLabels
from trueward.data.template import ChatFormat, Tokenizer, chat_format, encode, render

__all__ = ["StepGroup", "outcome_label", "tokenise_steps"]


@dataclass(frozen=True, slots=True)
class StepGroup:
    """A solution as tokens: one completion, of which the last token of each step is marked as trained.

    labels: one a step: 1 right, 0 neutral, -1 wrong, None where nobody rated it.
    """

    group: TokenGroup
    labels: tuple[int | None, ...]


def outcome_label(record: StepLabels, *, right: bool) -> StepLabels:
    """The solution with one label, that of the whole, at its end: what an outcome reward model learns."""
    return replace(record, labels=(*(None for _ in record.steps[:-1]), 1 if right else -1))


def tokenise_steps(
    tokenizer: Tokenizer, records: Iterable[StepLabels], *, max_tokens: int | None = None
) -> Iterator[StepGroup | Dropped]:
    """Step groups of solutions, in order.

    Args:
        max_tokens: longest prompt with solution, in tokens; a longer one is dropped whole.

    Raises:
        DataError: no chat template.
    """
    form = chat_format(tokenizer)
    for record in records:
        yield _step_group(tokenizer, form, record, max_tokens)


def _step_group(
    tokenizer: Tokenizer, form: ChatFormat, record: StepLabels, max_tokens: int | None
) -> StepGroup | Dropped:
    for text in (*(message.content for message in record.prompt), *record.steps):
        if found := form.special.search(text):
            return Dropped(record.id, SPECIAL, found.group())
    try:
        texts = [render(tokenizer, record.prompt, ask=True)]
    except DataError as error:
        return Dropped(record.id, REFUSED, error.what)
    for step in record.steps:
        texts.append(f"{texts[-1]}{step}\n")
    (whole,) = encode(tokenizer, form, texts[-1:])
    if max_tokens is not None and len(whole) > max_tokens:
        return Dropped(record.id, TOO_LONG, f"{len(whole)} tokens, at most {max_tokens}")
    ids = encode(tokenizer, form, texts[:-1])
    if any(whole[: len(part)] != part for part in ids):
        return Dropped(record.id, NO_PREFIX, "a token spans the end of a step and the next one's beginning")
    ends = {len(part) - 1 for part in (*ids[1:], whole)}
    marked = tuple(position in ends for position in range(len(ids[0]), len(whole)))
    completion = Completion(whole[len(ids[0]) :], marked)
    return StepGroup(TokenGroup(ids[0], (completion,), record.id), record.labels)
