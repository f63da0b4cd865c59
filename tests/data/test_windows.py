"""Pretraining windows: no token lost, none trained twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trueward.core.errors import DataError
from trueward.data.bpe import train_bpe
from trueward.data.windows import text_windows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("windows") / "tokenizer"
    train_bpe(["the cat sat on the mat"] * 3, vocab_size=270, folder=folder, max_positions=64)
    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1, max_size=50).filter(lambda text: "<|" not in text), max_size=4),
    window=st.integers(2, 20),
)
def test_every_token_stands_once_in_order(tokenizer: Any, texts: list[str], window: int) -> None:
    groups = list(text_windows(tokenizer, texts, window_tokens=window))
    seen = [i for group in groups for i in group.completions[0].ids]
    assert seen == [i for text in texts for i in [*ids(tokenizer, text), tokenizer.eos_token_id]]
    for group in groups:
        (completion,) = group.completions
        assert group.prompt_ids == (tokenizer.bos_token_id,)
        assert 1 <= len(completion.ids) <= window - 1
        assert completion.trained == (True,) * len(completion.ids)
    full = [group for group in groups if len(group.completions[0].ids) == window - 1]
    assert len(groups) - len(full) <= len(texts), "only the last window of a text is short"


def test_hand_count(tokenizer: Any) -> None:
    # 26 letters without merges and the end: 27 tokens in windows of 9 and 1 is three full ones.
    groups = list(text_windows(tokenizer, ["zyxwvuzyxwvuzyxwvuzyxwvuzy"], window_tokens=10))
    assert [len(group.completions[0].ids) for group in groups] == [9, 9, 9]
    assert [group.id for group in groups] == ["0:0", "0:9", "0:18"]


def test_rendered_chats_keep_one_begin_and_one_end(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], tokenize=False)
    (group,) = text_windows(tokenizer, [text], window_tokens=50, special="read")
    assert list(group.prompt_ids + group.completions[0].ids) == ids(tokenizer, text)


def test_texts_are_read_one_at_a_time(tokenizer: Any) -> None:
    read = []

    def texts() -> Iterator[str]:
        for number in range(3):
            read.append(number)
            yield "cat"

    next(text_windows(tokenizer, texts(), window_tokens=10))
    assert read == [0]


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [("a <|end|> b", 10, "special token"), ("", 10, "text 0 is empty"), ("cat", 1, "too small")],
    ids=["special", "empty", "window"],
)
def test_wrong_input_raises(tokenizer: Any, text: str, window: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(text_windows(tokenizer, [text], window_tokens=window))


def test_tokenizer_without_begin_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    other = AutoTokenizer.from_pretrained(tmp_path / "t")
    other.bos_token = None
    with pytest.raises(DataError, match="no token for the beginning"):
        list(text_windows(other, ["cat"], window_tokens=10))
