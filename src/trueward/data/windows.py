"""Pretraining windows: running text cut into consecutive pieces of one length, each behind a BOS token.

Every token of every text stands in exactly one window and is trained once. A window never spans two texts;
the last one of a text is as short as it comes out, which costs nothing because rows are packed, not padded.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from trueward.core.errors import DataError
from trueward.data.chat import Completion, TokenGroup
from trueward.data.template import Tokenizer, raw_ids, special_pattern, special_tokens

__all__ = ["SpecialTokens", "text_windows"]

SpecialTokens = Literal["refuse", "read"]


def text_windows(
    tokenizer: Tokenizer, texts: Iterable[str], *, window_tokens: int, special: SpecialTokens = "refuse"
) -> Iterator[TokenGroup]:
    """Groups of BOS as the prompt and the next tokens of a text as the one completion, all trained;
    streaming.

    Each text ends in the end-of-sequence token, unless it ends in one already.

    Args:
        texts: running text; one text is held at a time.
        window_tokens: tokens of a window, BOS included, >= 2.
        special: what to do with a text that holds a special token: refuse it, or read it as the token, which
            is right for chats that a template rendered and wrong for text from outside. A BOS that leads such
            a text is the window's own and does not stand twice.

    Raises:
        DataError: a tokenizer without BOS or end of sequence, a window of less than 2 tokens, an empty text,
            or a text with a special token.
    """
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or end is None:
        raise DataError(
            "the tokenizer has no token for the beginning or the end of a text",
            value={"bos": bos, "eos": end},
            remedy="set bos_token and eos_token and save the tokenizer",
        )
    if window_tokens < 2:
        raise DataError(
            "window_tokens is too small", value=window_tokens, expected="at least 2: BOS and a token"
        )
    pattern = special_pattern(special_tokens(tokenizer).values())
    for number, text in enumerate(texts):
        found = pattern.search(text) if special == "refuse" else None
        if found is not None:
            raise DataError(
                f"text {number} holds a special token of the tokenizer",
                value=found.group(),
                remedy="take it out, or pass special='read' for chats that the template rendered",
            )
        ids = raw_ids(tokenizer, [text])[0]
        if ids[:1] == [bos]:
            ids = ids[1:]
        if not ids:
            raise DataError(f"text {number} is empty", value=text, remedy="leave it out and count it")
        if ids[-1] != end:
            ids.append(end)
        step = window_tokens - 1
        for start in range(0, len(ids), step):
            window = tuple(ids[start : start + step])
            completion = Completion(window, (True,) * len(window))
            yield TokenGroup((bos,), (completion,), f"{number}:{start}")
