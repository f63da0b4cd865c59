"""The checks before step 1 that need the model."""

import io

import pytest
import torch
from rich.console import Console

from tests.trainers import language
from trueward.core.errors import PreflightError
from trueward.data.chat import TokenGroup, tokenise_demonstration
from trueward.data.records import Demonstration, Message
from trueward.models import LoraSettings, apply_lora
from trueward.models.tiny import tiny_model, tiny_tokenizer
from trueward.trainers.checks import check_vocabulary, checked


def groups() -> list[TokenGroup]:
    record = Demonstration(id="a", messages=(Message("user", "hi"), Message("assistant", "[b]ho")))
    group = tokenise_demonstration(tiny_tokenizer(), record)
    assert isinstance(group, TokenGroup)
    return [group]


def test_what_is_checked_is_shown() -> None:
    console = Console(file=io.StringIO(), width=120)
    report = checked(tiny_model("llama"), groups(), tiny_tokenizer(), console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert report.num_rows == 1
    assert "every trained span ends on a trained <|end|>" in shown
    assert "[b]ho" in shown, "text of the data is never markup"


def test_another_template_is_refused() -> None:
    with pytest.raises(PreflightError, match="chat template is not the expected one"):
        checked(tiny_model("llama"), groups(), tiny_tokenizer(), template_hash_expected="0" * 64)


def test_an_id_without_embedding_is_refused() -> None:
    with pytest.raises(PreflightError, match=r"no embedding for.*expected ids below 24"):
        checked(language.policy(), groups(), tiny_tokenizer())


@pytest.mark.parametrize("value", ["mean", "zero"])
def test_a_new_token_under_frozen_embeddings_is_refused(value: str) -> None:
    def base() -> torch.nn.Module:
        model = tiny_model("llama")
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight[5] = weight.mean(0) if value == "mean" else 0.0
        return model

    assert 5 in groups()[0].prompt_ids, "the assistant token of the tiny tokenizer"
    settings = LoraSettings(r=2)
    with pytest.raises(PreflightError, match=r"new token whose embedding.*got 5.*train_embeddings"):
        check_vocabulary(apply_lora(base(), settings, seed=0), groups())
    check_vocabulary(base(), groups())
    check_vocabulary(apply_lora(base(), LoraSettings(r=2, train_embeddings=True), seed=0), groups())
    check_vocabulary(apply_lora(tiny_model("llama"), settings, seed=0), groups())
