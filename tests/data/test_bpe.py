"""The byte-level BPE tokenizer that Trueward trains itself."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trueward.core.errors import DataError, StorageError
from trueward.data.bpe import SPECIAL_TOKENS, train_bpe
from trueward.data.chat import Completion, chat_format, tokenise_demonstration
from trueward.data.records import Demonstration, Message

TEXTS = ["the cat sat on the mat; the cat ran.\n", "a naïve dog ate 12 cakes, the dog sat"] * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    train_bpe(iter(TEXTS), vocab_size=290, folder=folder, max_positions=64)
    return AutoTokenizer.from_pretrained(folder)


def test_sizes_and_special_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) == 290 and tokenizer.model_max_length == 64
    assert tokenizer.convert_ids_to_tokens(range(7)) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert set(range(7)) == {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert tokenizer("the cat")["input_ids"][0] == 1
    assert len(tokenizer(" the cat")["input_ids"]) < 8, "merges were learnt"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


def test_template_renders_turns_without_trimming(tokenizer: Any) -> None:
    roles = ["system", "user", "assistant", "tool"]
    messages = [{"role": role, "content": f" {role}\n"} for role in roles]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|>" + "".join(f"<|{r}|> {r}\n<|end|>" for r in roles) + "<|assistant|>"
    with pytest.raises(Exception, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


def test_chats_become_groups_that_end_on_the_stop_token(tokenizer: Any) -> None:
    record = Demonstration(id="1", messages=(Message("user", "the cat"), Message("assistant", "sat")))
    group = tokenise_demonstration(tokenizer, record)
    text = tokenizer("sat", add_special_tokens=False)["input_ids"]
    question = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert group.prompt_ids == (1, 4, *question, 2, 5)
    assert group.completions == (Completion((*text, 2), (True,) * (len(text) + 1)),)
    assert chat_format(tokenizer).stop_ids == {2} and not chat_format(tokenizer).prepend_bos


def test_training_is_repeatable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_bpe(TEXTS, vocab_size=290, folder=tmp_path / name, max_positions=64)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_a_small_text_gives_a_smaller_vocabulary_and_says_so(tmp_path: Path) -> None:
    size = train_bpe(["abab"], vocab_size=1000, folder=tmp_path / "t", max_positions=64)
    assert size == len(AutoTokenizer.from_pretrained(tmp_path / "t")) == 7 + 256 + 1


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (TEXTS, {"vocab_size": 262}, "at least 263"),
        ([], {}, "no text"),
        (["", ""], {}, "no text"),
        (TEXTS, {"max_positions": 0}, "must be > 0"),
        (TEXTS, {"extra_special_tokens": ["<|end|>"]}, "stands twice"),
    ],
    ids=["vocabulary", "nothing", "empty", "positions", "special"],
)
def test_wrong_input_raises(tmp_path: Path, texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_bpe(texts, **{"vocab_size": 300, "folder": tmp_path / "t", "max_positions": 64, **options})
    assert not (tmp_path / "t").exists()


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        train_bpe(TEXTS, vocab_size=300, folder=tmp_path / "t", max_positions=64)
    assert not list((tmp_path / "t").iterdir())
