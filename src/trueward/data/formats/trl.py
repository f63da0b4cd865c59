"""The data set types of TRL, standard (strings) and conversational (messages), and OpenAI's two forms.

Source: TRL 1.16, docs/source/dataset_formats.md; OpenAI fine-tuning guide, chat and preference formats.
A string prompt becomes one user message.
"""

from collections.abc import Mapping
from typing import Final

from trueward.data.formats.base import (
    Columns,
    Format,
    answer,
    boolean,
    conversation,
    matches_columns,
    number,
    prompt,
    split_answer,
    text,
    texts,
)
from trueward.data.records import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Meta,
    Prompt,
    Record,
    RecordError,
    StepLabels,
    Text,
)

__all__ = ["FORMATS"]


def _text(row: Columns, id: str, meta: Meta) -> Record:
    return Text(id=id, text=text(row, "text"), meta=meta)


def _prompt(row: Columns, id: str, meta: Meta) -> Record:
    return Prompt(id=id, messages=prompt(row.get("prompt"), "prompt"), meta=meta)


def _messages(row: Columns, id: str, meta: Meta) -> Record:
    return Demonstration(id=id, messages=conversation(row.get("messages"), "messages"), meta=meta)


def _labelled_messages(row: Columns, id: str, meta: Meta) -> Record:
    ask, completion = split_answer(conversation(row.get("messages"), "messages"), "messages")
    return Label(id=id, prompt=ask, completion=completion, label=boolean(row, "label"), meta=meta)


def _prompt_completion(row: Columns, id: str, meta: Meta) -> Record:
    ask = prompt(row.get("prompt"), "prompt")
    reply = Message("assistant", answer(row.get("completion"), "completion"))
    return Demonstration(id=id, messages=(*ask, reply), meta=meta)


def _unpaired(row: Columns, id: str, meta: Meta) -> Record:
    return Label(
        id=id,
        prompt=prompt(row.get("prompt"), "prompt"),
        completion=answer(row.get("completion"), "completion"),
        label=boolean(row, "label"),
        meta=meta,
    )


def _margin(row: Columns) -> float | None:
    """`margin`, or the difference of UltraFeedback's scores where both are given."""
    margin = number(row, "margin")
    chosen, rejected = number(row, "score_chosen"), number(row, "score_rejected")
    return chosen - rejected if margin is None and chosen is not None and rejected is not None else margin


def _whole_conversations(row: Columns) -> bool:
    chosen = row.get("chosen")
    return isinstance(chosen, list) and len(chosen) > 1


def _comparison(row: Columns, id: str, meta: Meta) -> Record:
    if _whole_conversations(row):
        return _implicit(row, id, meta)
    return Comparison(
        id=id,
        prompt=prompt(row.get("prompt"), "prompt"),
        chosen=answer(row.get("chosen"), "chosen"),
        rejected=answer(row.get("rejected"), "rejected"),
        margin=_margin(row),
        soft_label=number(row, "soft_label"),
        meta=meta,
    )


def _common_text(chosen: str, rejected: str) -> int:
    """Where two strings part; a last shared space belongs to the answers, as in TRL's `extract_prompt`."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((n for n, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    return end - 1 if chosen[end - 1 : end] == " " else end


def _implicit(row: Columns, id: str, meta: Meta) -> Record:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _common_text(chosen, rejected)
        if end < 1:
            raise RecordError("rejected", rejected, "a text that begins like chosen, or a prompt column")
        ask, good, bad = prompt(chosen[:end], "chosen"), chosen[end:], rejected[end:]
    else:
        ask, good = split_answer(conversation(chosen, "chosen"), "chosen")
        other, bad = split_answer(conversation(rejected, "rejected"), "rejected")
        if ask != other:
            what = "the prompts of chosen and rejected differ"
            raise RecordError(
                "rejected", [m.content for m in other], "the messages of chosen but the last", what=what
            )
        stated = row.get("prompt")
        if isinstance(stated, str) and stated.strip() not in {m.content.strip() for m in ask}:
            raise RecordError("prompt", stated, "one of the messages of chosen")
    return Comparison(
        id=id,
        prompt=ask,
        chosen=good,
        rejected=bad,
        margin=_margin(row),
        soft_label=number(row, "soft_label"),
        meta=meta,
    )


def _stepwise(row: Columns, id: str, meta: Meta) -> Record:
    labels = row.get("labels")
    if not isinstance(labels, list):
        raise RecordError("labels", labels, "a list of labels, one a step")
    # False is wrong, not neutral: booleans know two values.
    plain = tuple((1 if label else -1) if isinstance(label, bool) else label for label in labels)
    ask, shares = prompt(row.get("prompt"), "prompt"), row.get("soft_labels")
    if shares is not None and not isinstance(shares, list):
        raise RecordError("soft_labels", shares, "a list of shares, one a step")
    return StepLabels(
        id=id,
        prompt=ask,
        steps=texts(row, "completions"),
        labels=plain,
        soft_labels=None if shares is None else tuple(shares),
        meta=meta,
    )


def _openai_preference(row: Columns, id: str, meta: Meta) -> Record:
    source = row.get("input")
    if not isinstance(source, Mapping):
        raise RecordError("input", source, "an object with messages")
    return Comparison(
        id=id,
        prompt=conversation(source.get("messages"), "input.messages"),
        chosen=answer(row.get("preferred_output"), "preferred_output"),
        rejected=answer(row.get("non_preferred_output"), "non_preferred_output"),
        meta=meta,
    )


_PAIR: Final = frozenset(
    {"prompt", "chosen", "rejected", "margin", "soft_label", "score_chosen", "score_rejected"}
)

FORMATS: Final = (
    Format(
        name="openai-preference",
        words="OpenAI preference rows (input, preferred_output, non_preferred_output)",
        kind="comparison",
        columns=frozenset({"input", "preferred_output", "non_preferred_output"}),
        matches=matches_columns("input", "preferred_output", "non_preferred_output"),
        read=_openai_preference,
    ),
    Format(
        name="trl-stepwise",
        words="TRL stepwise supervision (prompt, completions, labels)",
        kind="steps",
        columns=frozenset({"prompt", "completions", "labels", "soft_labels"}),
        matches=matches_columns("prompt", "completions", "labels"),
        read=_stepwise,
    ),
    Format(
        name="ultrafeedback-binarized",
        words="UltraFeedback binarized (whole conversations in chosen and rejected, beside a prompt)",
        kind="comparison",
        columns=_PAIR,
        matches=lambda row: "prompt" in row and "rejected" in row and _whole_conversations(row),
        read=_implicit,
    ),
    Format(
        name="trl-preference",
        words="TRL preference with an explicit prompt (prompt, chosen, rejected)",
        kind="comparison",
        columns=_PAIR,
        matches=matches_columns("prompt", "chosen", "rejected"),
        read=_comparison,
    ),
    Format(
        name="trl-preference-implicit",
        words="TRL preference with an implicit prompt (what chosen and rejected begin with alike)",
        kind="comparison",
        columns=_PAIR - {"prompt"},
        matches=matches_columns("chosen", "rejected", absent=("prompt", "instruction")),
        read=_implicit,
    ),
    Format(
        name="trl-unpaired",
        words="TRL unpaired preference (prompt, completion, label)",
        kind="label",
        columns=frozenset({"prompt", "completion", "label"}),
        matches=matches_columns("prompt", "completion", "label"),
        read=_unpaired,
    ),
    Format(
        name="trl-prompt-completion",
        words="TRL prompt and completion",
        kind="demonstration",
        columns=frozenset({"prompt", "completion"}),
        matches=matches_columns("prompt", "completion"),
        read=_prompt_completion,
    ),
    Format(
        name="messages-label",
        words="conversations with a label, good or bad (messages, label)",
        kind="label",
        columns=frozenset({"messages", "label"}),
        matches=matches_columns("messages", "label"),
        read=_labelled_messages,
    ),
    Format(
        name="openai-messages",
        words="OpenAI messages, which is TRL conversational language modelling",
        kind="demonstration",
        columns=frozenset({"messages"}),
        matches=matches_columns("messages"),
        read=_messages,
    ),
    Format(
        name="trl-prompt",
        words="TRL prompts only",
        kind="prompt",
        columns=frozenset({"prompt"}),
        matches=matches_columns("prompt", absent=("completion", "chosen", "completions", "response_0")),
        read=_prompt,
    ),
    Format(
        name="trl-text",
        words="TRL standard language modelling (text)",
        kind="text",
        columns=frozenset({"text"}),
        matches=matches_columns("text"),
        read=_text,
    ),
)
