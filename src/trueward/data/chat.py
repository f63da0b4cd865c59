"""From records to token groups: tokenised whole, spans by prefix difference, nothing truncated.

The prompt is what the template renders with `add_generation_prompt`; its ids must be a prefix of the ids of
the whole conversation, so that training sees exactly what generation sees. What cannot be used comes back as
`Dropped` with a reason, for `preflight` to count and show.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trueward.core.errors import DataError
from trueward.data.records import Comparison, Demonstration, Label, Message, Prompt, Ranking, Text
from trueward.data.template import (
    ChatFormat,
    Tokenizer,
    adds_bos,
    chat_format,
    encode,
    raw_ids,
    render,
    special_pattern,
    special_tokens,
    stop_ids,
    template_hash,
)

__all__ = [
    "Completion",
    "ChatFormat",
    "Dropped",
    "TokenGroup",
    "Tokenizer",
    "TrainOn",
    "Trainable",
    "chat_format",
    "stop_ids",
    "template_hash",
    "tokenise_comparison",
    "tokenise_demonstration",
    "tokenise_many",
    "tokenise_prompt",
    "tokenise_prompts",
    "tokenise_text",
    "tokenise_texts",
]

_BATCH: Final = 256
TrainOn = Literal["last", "all"]
Trainable = Demonstration | Comparison | Ranking | Label

SPECIAL: Final = "its text holds a special token of the tokenizer"
REFUSED: Final = "the chat template refuses it"
CHANGED: Final = "the chat template leaves out or changes a message"
NO_PREFIX: Final = "the tokens of its prompt are no prefix of the tokens of the conversation"
TOO_LONG: Final = "longer than max_tokens"


@dataclass(frozen=True, slots=True)
class Completion:
    """Ids that continue a prompt, and which of them are trained (True = counts)."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """One prompt of at least one token, and completions that each continue it (chosen, then rejected)."""

    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that will not be trained on: its id, why in words that can be counted, and the particulars."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """Texts of one record.

    Args:
        starts: the conversation up to each trained turn, generation prompt included; at least one.
        ends: the conversation up to and with each trained turn but the last.
        wholes: each whole conversation.
    """

    id: str
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    wholes: tuple[str, ...]


def _conversations(record: Trainable) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    match record:
        case Demonstration():
            return record.messages[:-1], (record.messages[-1].content,)
        case Comparison():
            return record.prompt, (record.chosen, record.rejected)
        case Ranking():
            return record.prompt, record.completions
        case Label():
            return record.prompt, (record.completion,)


def _must_start(whole: str, start: str, record_id: str) -> None:
    if not whole.startswith(start):
        raise DataError(
            f"record {record_id}: what the chat template renders for the prompt is no prefix of what it "
            "renders for the whole conversation",
            value=start[-60:],
            expected=f"what the conversation has there, {whole[max(0, len(start) - 60) : len(start)]!r}",
            remedy="use a template whose generation prompt begins every answer, or train_on='last'",
        )


def _special_in(form: ChatFormat, texts: Iterable[str]) -> str | None:
    return next((found.group() for text in texts if (found := form.special.search(text))), None)


def _rendered(
    tokenizer: Tokenizer, form: ChatFormat, record: Trainable, train_on: TrainOn
) -> _Rendered | Dropped:
    messages, answers = _conversations(record)
    contents = [m.content for m in messages]
    if found := _special_in(form, itertools.chain(contents, answers)):
        return Dropped(record.id, SPECIAL, found)
    earlier = (
        [n for n, m in enumerate(messages) if n > 0 and m.role == "assistant"] if train_on == "all" else []
    )
    try:
        starts = tuple(render(tokenizer, messages[:n], ask=True) for n in [*earlier, len(messages)])
        ends = tuple(render(tokenizer, messages[: n + 1]) for n in earlier)
        wholes = tuple(render(tokenizer, (*messages, Message("assistant", answer))) for answer in answers)
    except DataError as error:
        return Dropped(record.id, REFUSED, error.what)
    for whole, answer in zip(wholes, answers, strict=True):
        for start in (*starts, *ends):
            _must_start(whole, start, record.id)
        if missing := [text for text in (*contents, answer) if text.strip() not in whole]:
            return Dropped(record.id, CHANGED, missing[0][:60])
    return _Rendered(record.id, starts, ends, wholes)


def _completion(
    form: ChatFormat,
    whole: tuple[int, ...],
    starts: Sequence[tuple[int, ...]],
    ends: Sequence[tuple[int, ...]],
) -> Completion | None:
    """What of `whole` follows the first start, up to its last stop token; nothing if a start is no prefix."""
    if any(whole[: len(start)] != start for start in starts):
        return None
    limits = [*map(len, ends), len(whole)]
    begin = len(starts[0])
    trained = [False] * (len(whole) - begin)
    stop = begin
    for start, limit in zip(map(len, starts), limits, strict=True):
        # What the template writes after the stop token, such as a newline, no model has to learn.
        stop = next((n + 1 for n in range(limit - 1, start - 1, -1) if whole[n] in form.stop_ids), limit)
        trained[start - begin : stop - begin] = [True] * (stop - start)
    return Completion(whole[begin:stop], tuple(trained[: stop - begin]))


def _group(
    form: ChatFormat, rendered: _Rendered, ids: Sequence[tuple[int, ...]], max_tokens: int | None
) -> TokenGroup | Dropped:
    num_starts = len(rendered.starts)
    starts, ends = ids[:num_starts], ids[num_starts : 2 * num_starts - 1]
    completions = []
    for whole in ids[2 * num_starts - 1 :]:
        completion = _completion(form, whole, starts, ends)
        if completion is None:
            return Dropped(
                rendered.id, NO_PREFIX, "a token spans the end of the prompt and the answer's beginning"
            )
        length = len(starts[0]) + len(completion.ids)
        if max_tokens is not None and length > max_tokens:
            return Dropped(rendered.id, TOO_LONG, f"{length} tokens, at most {max_tokens}")
        completions.append(completion)
    return TokenGroup(starts[0], tuple(completions), rendered.id)


def tokenise_many(
    tokenizer: Tokenizer,
    records: Iterable[Trainable],
    *,
    max_tokens: int | None = None,
    train_on: TrainOn = "last",
) -> Iterator[TokenGroup | Dropped]:
    """Token groups of demonstrations, comparisons, rankings or labels, in order, batch by batch.

    Args:
        max_tokens: longest prompt plus completion, in tokens; a record with a longer one is dropped whole.
        train_on: the last assistant turn of a demonstration, or all of them. Other kinds have one trained
            turn.

    Raises:
        DataError: no chat template, or one whose generation prompt does not begin its answers (names the
            record).
    """
    form = chat_format(tokenizer)
    source = iter(records)
    while batch := list(itertools.islice(source, _BATCH)):
        items = [
            _rendered(tokenizer, form, record, train_on if isinstance(record, Demonstration) else "last")
            for record in batch
        ]
        texts = [text for r in items if isinstance(r, _Rendered) for text in (*r.starts, *r.ends, *r.wholes)]
        ids = iter(encode(tokenizer, form, texts))
        for item in items:
            if isinstance(item, Dropped):
                yield item
                continue
            count = len(item.starts) + len(item.ends) + len(item.wholes)
            yield _group(form, item, list(itertools.islice(ids, count)), max_tokens)


def tokenise_demonstration(
    tokenizer: Tokenizer, record: Demonstration, *, max_tokens: int | None = None, train_on: TrainOn = "last"
) -> TokenGroup | Dropped:
    """One demonstration as a group with one completion; see `tokenise_many`, which is faster for many."""
    return next(tokenise_many(tokenizer, [record], max_tokens=max_tokens, train_on=train_on))


def tokenise_comparison(
    tokenizer: Tokenizer, record: Comparison, *, max_tokens: int | None = None
) -> TokenGroup | Dropped:
    """One comparison as a group of two completions, chosen then rejected; see `tokenise_many`."""
    return next(tokenise_many(tokenizer, [record], max_tokens=max_tokens))


def tokenise_prompts(
    tokenizer: Tokenizer, prompts: Iterable[Prompt], *, max_tokens: int | None = None
) -> Iterator[TokenGroup | Dropped]:
    """Prompts ready for generation, as groups without completions, in order, batch by batch.

    Args:
        max_tokens: longest prompt, in tokens; a longer one is dropped.
    """
    form = chat_format(tokenizer)
    source = iter(prompts)
    while batch := list(itertools.islice(source, _BATCH)):
        items: list[str | Dropped] = []
        for prompt in batch:
            if found := _special_in(form, (m.content for m in prompt.messages)):
                items.append(Dropped(prompt.id, SPECIAL, found))
                continue
            try:
                items.append(render(tokenizer, prompt.messages, ask=True))
            except DataError as error:
                items.append(Dropped(prompt.id, REFUSED, error.what))
        ids = iter(encode(tokenizer, form, [text for text in items if isinstance(text, str)]))
        for prompt, item in zip(batch, items, strict=True):
            if isinstance(item, Dropped):
                yield item
                continue
            found_ids = next(ids)
            if max_tokens is not None and len(found_ids) > max_tokens:
                yield Dropped(prompt.id, TOO_LONG, f"{len(found_ids)} tokens, at most {max_tokens}")
            else:
                yield TokenGroup(found_ids, (), prompt.id)


def tokenise_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids a model sees before it answers `messages`.

    Raises:
        DataError: a message holds a special token as text, or the template refuses the conversation.
    """
    form = chat_format(tokenizer)
    if found := _special_in(form, (m.content for m in messages)):
        raise DataError("a message holds a special token of the tokenizer", value=found, remedy="take it out")
    return encode(tokenizer, form, [render(tokenizer, messages, ask=True)])[0]


def tokenise_texts(tokenizer: Tokenizer, records: Iterable[Text]) -> Iterator[tuple[int, ...] | Dropped]:
    """Running text to pretrain on: begin token where the tokenizer adds one, the text, end of sequence.

    Needs no chat template. A text that holds a special token as text is dropped: it would be read as one.

    Raises:
        DataError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token", remedy="set eos_token and save the tokenizer"
        )
    front = (tokenizer.bos_token_id,) if adds_bos(tokenizer) else ()
    special = special_pattern(special_tokens(tokenizer).values())
    source = iter(records)
    while batch := list(itertools.islice(source, _BATCH)):
        found = [special.search(record.text) for record in batch]
        ids = iter(raw_ids(tokenizer, [r.text for r, hit in zip(batch, found, strict=True) if hit is None]))
        for record, hit in zip(batch, found, strict=True):
            if hit is not None:
                yield Dropped(record.id, SPECIAL, hit.group())
            else:
                yield (*front, *next(ids), tokenizer.eos_token_id)


def tokenise_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """One running text; see `tokenise_texts`.

    Raises:
        DataError: the text holds a special token as text, or the tokenizer has no end of sequence.
    """
    result = next(tokenise_texts(tokenizer, [Text(id="text", text=text)]))
    if isinstance(result, Dropped):
        raise DataError(
            "the text holds a special token of the tokenizer", value=result.detail, remedy="take it out"
        )
    return result
