"""The record kinds that all of Trueward exchanges, and their JSON form. File formats are in `formats`.

Every record is checked when it is made, so one that exists is usable: strings are encodable and free of NUL,
a completion has text, chosen differs from rejected. What is wrong is named by field, value and expectation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final, TypeAlias

from trueward.core.errors import DataError, nearest

__all__ = [
    "ROLES",
    "SCHEMA",
    "Comparison",
    "Demonstration",
    "Label",
    "Message",
    "Meta",
    "Prompt",
    "Ranking",
    "Record",
    "RecordError",
    "StepLabels",
    "Text",
    "from_json",
    "kind_of",
    "to_json",
]

SCHEMA: Final = "trueward.record/1"
ROLES: Final = ("system", "user", "assistant", "tool")
_MAX_DEPTH = 32


class RecordError(DataError):
    """One field of one record is wrong."""

    def __init__(self, field: str, value: object, expected: str, *, what: str | None = None) -> None:
        self.field = field
        self.value = value
        super().__init__(what or f"{field} is wrong", value=value, expected=expected)


def _check_text(value: object, name: str, *, filled: bool = False) -> None:
    if not isinstance(value, str):
        raise RecordError(name, value, "a string")
    if "\0" in value:
        raise RecordError(name, value, "text without NUL characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RecordError(name, value[error.start : error.start + 20], "valid UTF-8 text") from error
    if filled and not value.strip():
        raise RecordError(name, value, "text that is not empty", what=f"{name} is empty")


def _check_json(value: object, name: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise RecordError(name, "…", f"JSON nested at most {_MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(name, value, "a finite number")
    elif isinstance(value, str):
        _check_text(value, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, name)
            _check_json(item, f"{name}.{key}" if depth == 0 else name, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, name, depth + 1)
    else:
        raise RecordError(name, value, "a JSON value; drop or convert this column")


def _check_number(value: object, name: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(name, value, "a finite number or nothing")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: system, user, assistant or tool.
        content: its text; may be empty except where a record needs an answer.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RecordError("role", self.role, f"one of {', '.join(ROLES)}")
        _check_text(self.content, "content")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """Where a record comes from and what it may be used for; empty means not stated."""

    source: str = ""
    licence: str = ""
    consent: str = ""
    annotator: str = ""
    charter: str = ""
    time: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("source", "licence", "consent", "annotator", "charter", "time"):
            _check_text(getattr(self, name), f"meta.{name}")
        if not isinstance(self.extra, Mapping):
            raise RecordError("meta.extra", self.extra, "an object")
        _check_json(self.extra, "meta.extra")


def _check_messages(messages: object, name: str) -> tuple[Message, ...]:
    if not isinstance(messages, tuple) or not messages or not all(isinstance(m, Message) for m in messages):
        raise RecordError(name, messages, "at least one message")
    return messages


def _check_prompt(messages: object, name: str) -> None:
    last = _check_messages(messages, name)[-1]
    if last.role == "assistant":
        raise RecordError(f"{name}[-1].role", last.role, "a prompt that ends before the assistant's turn")
    _check_text(last.content, f"{name}[-1].content", filled=True)


def _check_texts(texts: object, name: str, *, least: int) -> int:
    if not isinstance(texts, tuple) or len(texts) < least:
        raise RecordError(name, texts, f"at least {least} strings")
    for number, text in enumerate(texts):
        _check_text(text, f"{name}[{number}]", filled=True)
    return len(texts)


def _check_shares(shares: object, name: str, count: int) -> None:
    if not isinstance(shares, tuple) or len(shares) != count:
        raise RecordError(name, shares, f"{count} shares, one a step")
    for number, share in enumerate(shares):
        _check_number(share, f"{name}[{number}]")
        if share is not None and not 0 <= share <= 1:
            raise RecordError(f"{name}[{number}]", share, "a share in [0, 1] or nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Running text to train a language model on."""

    id: str
    text: str
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_text(self.text, "text", filled=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Messages that wait for an answer."""

    id: str
    messages: tuple[Message, ...]
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_prompt(self.messages, "messages")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A conversation whose last message is the answer to imitate."""

    id: str
    messages: tuple[Message, ...]
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        messages = _check_messages(self.messages, "messages")
        if messages[-1].role != "assistant" or len(messages) < 2:
            raise RecordError(
                "messages[-1].role", messages[-1].role, "a prompt and then an assistant message"
            )
        _check_prompt(messages[:-1], "messages[:-1]")
        _check_text(messages[-1].content, "messages[-1].content", filled=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two answers to one prompt, the first preferred.

    Args:
        margin: by how much, in the unit of the source, or nothing.
        soft_label: P(chosen is better) in [0, 1], 0.5 for a tie, or nothing for a plain preference.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    soft_label: float | None = None
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_prompt(self.prompt, "prompt")
        _check_text(self.chosen, "chosen", filled=True)
        _check_text(self.rejected, "rejected", filled=True)
        if self.chosen == self.rejected:
            what = "chosen and rejected are identical"
            raise RecordError("rejected", self.rejected, "an answer that differs from chosen", what=what)
        _check_number(self.margin, "margin")
        _check_number(self.soft_label, "soft_label")
        if self.soft_label is not None and not 0 <= self.soft_label <= 1:
            raise RecordError("soft_label", self.soft_label, "a probability in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Two or more answers to one prompt, best first; scores, where known, are in `meta.extra`."""

    id: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_prompt(self.prompt, "prompt")
        _check_texts(self.completions, "completions", least=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One answer, judged good (true) or bad (false) on its own."""

    id: str
    prompt: tuple[Message, ...]
    completion: str
    label: bool
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_prompt(self.prompt, "prompt")
        _check_text(self.completion, "completion", filled=True)
        if not isinstance(self.label, bool):
            raise RecordError("label", self.label, "true or false")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLabels:
    """A solution in steps.

    Args:
        labels: one a step: 1 right, 0 neutral (or wrong, where a source knows 0 and 1 only), -1 wrong, or
            nothing where nobody rated the step.
        soft_labels: where the labels come from rollouts, the share in [0, 1] of those from each step that
            end right, or nothing where none could be judged.
    """

    id: str
    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[int | None, ...]
    soft_labels: tuple[float | None, ...] | None = None
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        _check_text(self.id, "id", filled=True)
        _check_prompt(self.prompt, "prompt")
        count = _check_texts(self.steps, "steps", least=1)
        if not isinstance(self.labels, tuple) or len(self.labels) != count:
            raise RecordError("labels", self.labels, f"{count} labels, one a step")
        for number, label in enumerate(self.labels):
            if label is not None and (isinstance(label, bool) or label not in (-1, 0, 1)):
                raise RecordError(f"labels[{number}]", label, "-1, 0, 1 or nothing")
        if self.soft_labels is not None:
            _check_shares(self.soft_labels, "soft_labels", count)


Record: TypeAlias = Text | Prompt | Demonstration | Comparison | Ranking | Label | StepLabels

_KINDS: Final[dict[str, type[Record]]] = {
    "text": Text,
    "prompt": Prompt,
    "demonstration": Demonstration,
    "comparison": Comparison,
    "ranking": Ranking,
    "label": Label,
    "steps": StepLabels,
}
_NO_META: Final = Meta()
_NAMES: Final = {cls: name for name, cls in _KINDS.items()}


def kind_of(record: Record) -> str:
    """The name in JSON: text, prompt, demonstration, comparison, ranking, label or steps."""
    return _NAMES[type(record)]


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
    if isinstance(value, Meta):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON values; fields that hold their empty default are left out."""
    result: dict[str, Any] = {"schema": SCHEMA, "kind": kind_of(record)}
    for item in fields(record):
        value = getattr(record, item.name)
        if value is not None and value != _NO_META:
            result[item.name] = _plain(value)
    return result


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RecordError(name, value, "a list of messages")
    result = []
    for number, item in enumerate(value):
        where = f"{name}[{number}]"
        if not isinstance(item, Mapping) or set(item) != {"role", "content"}:
            raise RecordError(where, item, "an object with role and content")
        try:
            result.append(Message(item["role"], item["content"]))
        except RecordError as error:
            raise RecordError(f"{where}.{error.field}", error.value, error.expected or "") from error
    return tuple(result)


def _meta(value: object, name: str) -> Meta:
    if not isinstance(value, Mapping):
        raise RecordError(name, value, "an object")
    known = {item.name for item in fields(Meta)}
    for key in value:
        if key not in known:
            raise RecordError(f"{name}.{key}", value[key], f"no such field; {nearest(str(key), known)}")
    return Meta(**value)


def _sequence(value: object, name: str) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecordError(name, value, "a list")
    return tuple(value)


_READERS: Final[dict[str, Callable[[object, str], object]]] = {
    "messages": _messages,
    "prompt": _messages,
    "meta": _meta,
    "completions": _sequence,
    "steps": _sequence,
    "labels": _sequence,
    "soft_labels": _sequence,
}


def from_json(value: object) -> Record:
    """The record that `to_json` wrote.

    Raises:
        RecordError: unknown schema or kind, unknown or missing field, or a field that breaks a rule.
    """
    if not isinstance(value, Mapping):
        raise RecordError("record", value, "a JSON object")
    if value.get("schema") != SCHEMA:
        raise RecordError("schema", value.get("schema"), SCHEMA)
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RecordError("kind", kind, f"one of {', '.join(_KINDS)}")
    cls = _KINDS[kind]
    known = {item.name: item for item in fields(cls)}
    arguments: dict[str, Any] = {}
    for key, item in value.items():
        if key in ("schema", "kind"):
            continue
        if key not in known:
            raise RecordError(str(key), item, f"no such field in a {kind}; {nearest(str(key), known)}")
        reader = _READERS.get(key)
        arguments[key] = reader(item, key) if reader else item
    for name, description in known.items():
        if name not in arguments and description.default is MISSING:
            raise RecordError(name, None, f"this field in a {kind}", what=f"{name} is missing")
    return cls(**arguments)
