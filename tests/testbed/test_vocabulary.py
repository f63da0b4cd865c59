"""The testbed's tokenizer knows every word that the world can say, and gives it back."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueward.data.chat import TokenGroup, tokenise_prompts
from trueward.testbed import (
    declarations,
    demonstrations,
    make_world,
    prompts,
    to_prompt,
    web_chats,
    write_tokenizer,
)

WORLD = make_world()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(WORLD, folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return loaded


def _check(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids, text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_reply_and_statement_comes_back(tokenizer: PreTrainedTokenizerBase) -> None:
    for chat in web_chats(WORLD, 1500, 2, 0):
        for text in (*chat.replies, *(turn for _, turn in chat.task.turns)):
            _check(tokenizer, text)
    for text in declarations(WORLD, 1500, 0):
        _check(tokenizer, text)
    for record in demonstrations(WORLD, 500, 0):
        _check(tokenizer, record.messages[-1].content)


@pytest.mark.parametrize("held_out", [False, True], ids=["feedback", "evaluation"])
def test_every_prompt_tokenises(tokenizer: PreTrainedTokenizerBase, held_out: bool) -> None:
    for group in tokenise_prompts(tokenizer, prompts(WORLD, 500, held_out=held_out, seed=0)):
        assert isinstance(group, TokenGroup)
        assert tokenizer.unk_token_id not in group.prompt_ids
        assert group.prompt_ids[0] == tokenizer.bos_token_id
        assert group.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_base_model_reads_every_wrapper(tokenizer: PreTrainedTokenizerBase) -> None:
    seen = {chat.task.wrapper for chat in web_chats(WORLD, 1500, 1, 0) if to_prompt(chat.task)}
    assert {"role_play", "injection", "rot13", "base64", "multi_turn", "plain"} == seen


def test_pad_end_and_unknown_are_three_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert len(set(special)) == 4
