"""Solutions in steps as token groups whose step ends are known: by prefix difference, nothing truncated.

The prompt is what the template renders with the generation prompt; behind it each step stands with a newline
that closes it. A step's end is its last token. There is no end of turn: more steps may follow.
A solution that a model drew is cut into its steps by `drawn_steps`, along the tokens that were drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from trueward.core.errors import DataError
from trueward.data.chat import NO_PREFIX, REFUSED, SPECIAL, TOO_LONG, Completion, Dropped, TokenGroup
from trueward.data.records import StepLabels
from trueward.data.template import ChatFormat, Tokenizer, chat_format, encode, render

__all__ = ["DrawnStep", "StepGroup", "drawn_steps", "outcome_label", "tokenise_steps"]


@dataclass(frozen=True, slots=True)
class StepGroup:
    """A solution as tokens: one completion, of which the last token of each step is marked as trained.

    labels: one a step: 1 right, 0 neutral, -1 wrong, None where nobody rated it.
    soft_labels: share of rollouts from each step that end right, None where none could be judged; None as a
        whole where the labels do not come from rollouts.
    """

    group: TokenGroup
    labels: tuple[int | None, ...]
    soft_labels: tuple[float | None, ...] | None = None


class DrawnStep(NamedTuple):
    """A step of a drawn solution. end: how many of the drawn tokens it and the steps before it take."""

    text: str
    end: int


def drawn_steps(ids: Sequence[int], *, decode: Callable[[Sequence[int]], str], end: str) -> list[DrawnStep]:
    """The steps of a solution, along its tokens, so that a prefix of it is what the model itself drew.

    A step goes up to the token that completes `end`, and the last one to the last token; what is blank is no
    step of its own.

    Args:
        ids: drawn tokens without the stop token.
        decode: ids -> text without special tokens.
        end: text that ends a step, such as a newline; it belongs to the step, but for white space.
    """
    found: list[DrawnStep] = []
    begin = 0
    for position in range(1, len(ids) + 1):
        # Decoded from the start of the step: pieces of a character or word are whole at an end.
        text = decode(ids[begin:position])
        if not text.strip():
            continue
        if position == len(ids) or end in text.lstrip():
            found.append(DrawnStep(text.strip(), position))
            begin = position
    if found and begin < len(ids):
        # Blank tokens after the last step change no text.
        found[-1] = found[-1]._replace(end=len(ids))
    return found


def outcome_label(record: StepLabels, *, right: bool) -> StepLabels:
    """The solution with one label, that of the whole, at its end: what an outcome reward model learns."""
    labels = (*(None for _ in record.steps[:-1]), 1 if right else -1)
    return replace(record, labels=labels, soft_labels=None)


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
    if len(ends) != len(record.steps) or len(ids[0]) - 1 in ends:
        return Dropped(record.id, NO_PREFIX, "a step has no token of its own")
    marked = tuple(position in ends for position in range(len(ids[0]), len(whole)))
    completion = Completion(whole[len(ids[0]) :], marked)
    return StepGroup(TokenGroup(ids[0], (completion,), record.id), record.labels, record.soft_labels)
