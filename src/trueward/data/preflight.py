"""The checks before step 1 of every trainer. They block; they do not warn.

Each is about what a finished run would otherwise hide: a stop token that is never trained, a row that trains
nothing, two beginnings, tokens that nobody asked for. One pass over the token groups.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rich.text import Text as RichText

from trueward.core.errors import PreflightError
from trueward.core.hashing import short
from trueward.data.chat import Completion, Dropped, TokenGroup
from trueward.data.template import ChatFormat, Tokenizer, chat_format

__all__ = ["MAX_DROPPED", "PreflightReport", "Spans", "coloured_example", "preflight"]

MAX_DROPPED = 0.5
"""Largest share of records that may be dropped, unless a recipe says otherwise."""
Spans = Literal["answers", "steps"]
"""What is trained: answers, whose spans end on a stop token, or the ends of steps, behind which more steps
may follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightReport:
    """What was checked and counted.

    Args:
        num_rows: groups that passed.
        num_tokens: prompt and completion tokens, each prompt once.
        num_trained: trained tokens.
        longest: tokens of the longest prompt plus completion.
        dropped: reason -> number of records left out.
        stop_tokens: texts of the tokens that end an assistant turn.
        begin_token: text of the token every row starts with, empty where there is none.
        pad_is_stop: the padding token is a stop token; harmless, since masks go by position.
        template_hash: of the tokenizer's template.
        spans: what is trained.
    """

    num_rows: int
    num_tokens: int
    num_trained: int
    longest: int
    dropped: dict[str, int]
    stop_tokens: tuple[str, ...]
    begin_token: str
    pad_is_stop: bool
    template_hash: str
    spans: Spans = "answers"

    def lines(self) -> list[str]:
        """The report in sentences."""
        total = self.num_rows + sum(self.dropped.values())
        begin = (
            f"every row starts with one {self.begin_token}"
            if self.begin_token
            else "no begin token is in use"
        )
        stops = " or ".join(self.stop_tokens)
        result = [
            f"{self.num_rows:,} of {total:,} rows, {self.num_tokens:,} tokens, longest {self.longest:,}",
            f"{begin}; template {short(self.template_hash)}",
        ]
        if self.spans == "steps":
            result.append(f"{self.num_trained:,} steps, each judged at its last token")
        elif self.num_trained:
            result.append(
                f"{self.num_trained:,} trained tokens; every trained span ends on a trained {stops}"
            )
        if self.pad_is_stop:
            result.append(
                "the padding token is a stop token; masks go by position, so it is trained where it stops"
            )
        if not self.dropped:
            result.append("nothing truncated, nothing dropped")
        for reason, count in self.dropped.items():
            result.append(
                f"dropped {count:,} of {total:,} ({count / total:.1%}): {reason}; nothing truncated"
            )
        return result


def _fail(group: TokenGroup, what: str, *, value: object, expected: str, remedy: str) -> PreflightError:
    return PreflightError(
        f"row {group.id or '(no id)'}: {what}", value=value, expected=expected, remedy=remedy
    )


def _check_begin(group: TokenGroup, form: ChatFormat) -> None:
    """One begin token in front; Llama 2 writes more, each after the stop token of an earlier turn."""
    bos, ids = form.bos_id, group.prompt_ids
    if bos is None:
        return
    remedy = "tokenise rendered text with add_special_tokens=False"
    if ids[0] != bos:
        raise _fail(
            group, "no begin token in front", value=ids[:3], expected=f"id {bos} first", remedy=remedy
        )
    if ids.count(bos) == 1:
        return
    if bos in form.stop_ids:
        doubled = ids[1:2] == (bos,)
    else:
        doubled = any(b == bos and a not in form.stop_ids for a, b in pairwise(ids))
    if doubled:
        raise _fail(group, "more than one begin token", value=ids[:8], expected="exactly one", remedy=remedy)


def _span_ends(completion: Completion) -> list[int]:
    trained = completion.trained
    if all(trained):
        return [len(trained) - 1]
    return [n for n, on in enumerate(trained) if on and (n + 1 == len(trained) or not trained[n + 1])]


def _check_completion(
    group: TokenGroup, completion: Completion, form: ChatFormat, tokenizer: Tokenizer, spans: Spans
) -> int:
    ids, trained = completion.ids, completion.trained
    assert len(ids) == len(trained), "a mask is as long as its ids"
    num_trained = sum(trained)
    if num_trained == 0:
        raise _fail(
            group,
            "not one token of a completion is trained",
            value=tokenizer.decode(list(ids[:20])),
            expected="at least the stop token",
            remedy="check the mask and the record",
        )
    ends = _span_ends(completion)
    for end in ends if spans == "answers" else ():
        if ids[end] not in form.stop_ids:
            raise _fail(
                group,
                "a trained span does not end on a stop token",
                value=tokenizer.decode(list(ids[max(0, end - 4) : end + 2])),
                expected=" or ".join(repr(tokenizer.decode([i])) for i in sorted(form.stop_ids)) or "one",
                remedy="the model would never stop: use a template that ends its answers on a special token, "
                "and a mask by position, never one that searches for the padding id",
            )
    if ends[-1] != len(ids) - 1:
        raise _fail(
            group,
            "the last token of a completion is not trained",
            value=tokenizer.decode(list(ids[-5:])),
            expected="a completion that ends where training ends",
            remedy="cut the completion after its stop token",
        )
    bos = form.bos_id
    if (
        bos in ids
        and bos not in form.stop_ids
        and any(on and i == bos for i, on in zip(ids, trained, strict=True))
    ):
        raise _fail(
            group,
            "a trained token is the begin token",
            value=tokenizer.decode(list(ids[:20])),
            expected="the begin token in front of the prompt only",
            remedy="tokenise the conversation once, not the completion on its own",
        )
    return num_trained


def _check_padding(group: TokenGroup, form: ChatFormat, tokenizer: Tokenizer) -> None:
    pad = tokenizer.pad_token_id
    # Some tokenizers pad with their unknown or begin token; those occur in real text and are masked by
    # position too.
    if pad is None or pad in form.stop_ids or pad in (form.bos_id, getattr(tokenizer, "unk_token_id", None)):
        return
    if pad in group.prompt_ids or any(pad in c.ids for c in group.completions):
        raise _fail(
            group,
            "padding tokens in the data",
            value=tokenizer.decode([pad]),
            expected="rows without padding",
            remedy="leave padding to the trainer",
        )


def _check_form(group: TokenGroup, completions: bool) -> None:
    if not group.prompt_ids or bool(group.completions) != completions:
        raise _fail(
            group,
            "the group is not of the expected form",
            value=f"{len(group.prompt_ids)} prompt tokens, {len(group.completions)} completions",
            expected=f"a prompt {'with' if completions else 'without'} completions",
            remedy="tokenise the right kind of record",
        )


def _check_dropped(dropped: Sequence[Dropped], num_rows: int, max_dropped: float) -> dict[str, int]:
    counts = dict(Counter(item.reason for item in dropped).most_common())
    if num_rows == 0 or len(dropped) > max_dropped * (num_rows + len(dropped)):
        first = (
            f"for example record {dropped[0].id}: {dropped[0].detail}"
            if dropped
            else "there is no data at all"
        )
        raise PreflightError(
            f"{len(dropped)} of {num_rows + len(dropped)} rows are dropped",
            value=counts,
            expected=f"rows to train on, and at most {max_dropped:.0%} dropped",
            remedy=first,
        )
    return counts


def preflight(
    groups: Iterable[TokenGroup],
    tokenizer: Tokenizer,
    *,
    dropped: Sequence[Dropped] = (),
    max_dropped: float = MAX_DROPPED,
    template_hash_expected: str | None = None,
    completions: bool = True,
    spans: Spans = "answers",
) -> PreflightReport:
    """Check everything that will be trained on; raise at the first thing wrong.

    Args:
        dropped: records that tokenising left out, to be counted.
        max_dropped: largest share of dropped records in [0, 1].
        template_hash_expected: hash of the template the model or the data was made with.
        completions: False for prompts to generate from, which have none.
        spans: what is trained.

    Raises:
        PreflightError: names the row, the value, what was expected and what to do.
    """
    form = chat_format(tokenizer)
    if template_hash_expected is not None and form.hash != template_hash_expected:
        raise PreflightError(
            "the tokenizer's chat template is not the expected one",
            value=short(form.hash),
            expected=short(template_hash_expected),
            remedy="use the tokenizer saved with the model, or make the data and the evidence anew",
        )
    num_rows = num_tokens = num_trained = longest = 0
    for group in groups:
        _check_form(group, completions)
        _check_begin(group, form)
        _check_padding(group, form, tokenizer)
        num_trained += sum(_check_completion(group, c, form, tokenizer, spans) for c in group.completions)
        num_rows += 1
        num_tokens += len(group.prompt_ids) + sum(len(c.ids) for c in group.completions)
        longest = max(
            longest, len(group.prompt_ids) + max((len(c.ids) for c in group.completions), default=0)
        )
    counts = _check_dropped(dropped, num_rows, max_dropped)
    return PreflightReport(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_trained=num_trained,
        longest=longest,
        dropped=counts,
        stop_tokens=tuple(str(tokenizer.decode([index])) for index in sorted(form.stop_ids)),
        begin_token="" if form.bos_id is None else str(tokenizer.decode([form.bos_id])),
        pad_is_stop=tokenizer.pad_token_id in form.stop_ids,
        template_hash=form.hash,
        spans=spans,
    )


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def coloured_example(group: TokenGroup, tokenizer: Tokenizer) -> RichText:
    """One group for the terminal: prompt dim, trained green, untrained dim, trained stop token bold.

    The text is literal: no markup in it is interpreted and control characters are escaped.
    """
    stops = chat_format(tokenizer).stop_ids
    result = RichText(_escaped(tokenizer.decode(list(group.prompt_ids))), style="dim")
    for number, completion in enumerate(group.completions):
        if number:
            result.append("\n---\n", style="dim")
        start = 0
        styles = [
            ("bold green" if index in stops else "green") if on else "dim"
            for index, on in zip(completion.ids, completion.trained, strict=True)
        ]
        for end in range(1, len(styles) + 1):
            if end == len(styles) or styles[end] != styles[start]:
                result.append(
                    _escaped(tokenizer.decode(list(completion.ids[start:end]))), style=styles[start]
                )
                start = end
    return result
