"""What a tokenizer's own chat template does: rendering, stop tokens, the begin token, the hash.

Nothing here knows a model family: everything is found by rendering a probe. Works with any Hugging Face
tokenizer object and imports none. From records to token groups: `chat`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jinja2

from trueward.core.errors import DataError
from trueward.core.hashing import hash_json
from trueward.data.records import Message

__all__ = [
    "ChatFormat",
    "Tokenizer",
    "adds_bos",
    "chat_format",
    "encode",
    "raw_ids",
    "render",
    "special_pattern",
    "special_tokens",
    "stop_ids",
    "template_hash",
]

_PROBE: Final = "trueward"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any

    @property
    def bos_token(self) -> Any: ...
    @property
    def bos_token_id(self) -> Any: ...
    @property
    def eos_token(self) -> Any: ...
    @property
    def eos_token_id(self) -> Any: ...
    @property
    def pad_token_id(self) -> Any: ...
    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Any, **kwargs: Any) -> Any: ...
    def __call__(self, text: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a tokenizer and its template do, found by rendering a probe.

    Args:
        hash: of template and special tokens.
        stop_ids: ids that end an assistant turn: the template's end of turn and the tokenizer's end of
            sequence.
        bos_id: the id every sequence starts with, or nothing where neither template nor tokenizer writes one.
        prepend_bos: the tokenizer would write it and the template does not, so it is put in front here.
        special: matches the text of any special token.
    """

    hash: str
    stop_ids: frozenset[int]
    bos_id: int | None
    prepend_bos: bool
    special: re.Pattern[str]


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 over the chat template and the special tokens it can write.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template",
            remedy="use the chat version of the model, or set one and save it",
        )
    return hash_json([tokenizer.chat_template, str(tokenizer.bos_token), str(tokenizer.eos_token)])


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Id -> text of every special token."""
    return {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_pattern(special: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the text of any of `special`, and nothing where there are none."""
    texts = sorted(special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer on its own puts a beginning-of-sequence token in front of a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer(_PROBE)["input_ids"])[:1] == [bos]


def raw_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, one batch, with nothing added in front or behind."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    result: list[list[int]] = encoded["input_ids"]
    return result


def encode(tokenizer: Tokenizer, form: ChatFormat, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each rendered text, one batch, with the begin token exactly where `form` says."""
    front = (form.bos_id,) if form.prepend_bos and form.bos_id is not None else ()
    return [(*front, *ids) for ids in raw_ids(tokenizer, texts)]


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, ask: bool = False) -> str:
    """The conversation as the tokenizer's template writes it.

    Args:
        ask: end with the template's generation prompt.

    Raises:
        DataError: the template refuses the conversation, for example because roles do not alternate.
    """
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str), "tokenize=False gives text"
    return text


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Look at what the template writes around a probe answer.

    Raises:
        DataError: no template, the template refuses one question and answer, or it does not render the
            answer.
    """
    digest = template_hash(tokenizer)
    text = render(tokenizer, (Message("user", "question"), Message("assistant", _PROBE)))
    _, found, tail = text.rpartition(_PROBE)
    if not found:
        raise DataError("the chat template does not render the assistant's answer", value=text)
    special = special_tokens(tokenizer)
    ends = [index for index in raw_ids(tokenizer, [tail])[0] if index in special][:1]
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    bos = tokenizer.bos_token_id
    writes = bos is not None and raw_ids(tokenizer, [text])[0][:1] == [bos]
    adds = adds_bos(tokenizer)
    return ChatFormat(
        hash=digest,
        stop_ids=frozenset(ends),
        bos_id=bos if writes or adds else None,
        prepend_bos=adds and not writes,
        special=special_pattern(special.values()),
    )


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an assistant turn, for generation; see `ChatFormat`."""
    return chat_format(tokenizer).stop_ids
