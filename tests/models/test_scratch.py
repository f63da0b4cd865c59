"""New models: the promised initialisation, repeatable, and able to learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from trueward.core.errors import ModelError
from trueward.models.scratch import ScratchSettings, new_llama
from trueward.models.tiny import tiny_tokenizer

SMALL = ScratchSettings(
    hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_positions=48, seed=3
)


def test_initial_weights_are_as_documented() -> None:
    model = new_llama(tiny_tokenizer(), SMALL)
    embedding = model.get_input_embeddings().weight
    assert abs(embedding[1:].std().item() - 0.1) < 0.005, "16,768 draws: the standard error is 0.0006"
    assert not embedding[0].any()
    assert model.lm_head.weight is embedding
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not parameter.any(), name
        elif "proj" in name:
            assert abs(parameter.std().item() - 1 / 8) < 0.01, name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_every_layer_begins_as_the_identity() -> None:
    model = new_llama(tiny_tokenizer(), SMALL)
    with torch.no_grad():
        states = model(torch.arange(1, 20).unsqueeze(0), output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])


def test_seed_decides_and_global_randomness_is_untouched() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = new_llama(tiny_tokenizer(), SMALL).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(6)
    again = new_llama(tiny_tokenizer(), SMALL).state_dict()
    other = new_llama(tiny_tokenizer(), SMALL.model_copy(update={"seed": 4})).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_saved_model_loads_with_tied_weights(tmp_path: Path) -> None:
    model = new_llama(tiny_tokenizer(), SMALL)
    model.save_pretrained(tmp_path / "m")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert (loaded.config.pad_token_id, loaded.config.bos_token_id, loaded.config.eos_token_id) == (0, 1, 2)
    assert loaded.config.max_position_embeddings == 48
    ids = torch.arange(1, 20).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_it_learns_rows_by_heart_at_a_high_rate() -> None:
    model = new_llama(tiny_tokenizer(), SMALL)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(7, 263, (8, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Knowing nothing costs ln 256 = 5.5 a token.
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    "changes",
    [{"num_heads": 3}, {"num_kv_heads": 3}, {"num_heads": 64, "num_kv_heads": 64}],
    ids=["width", "kv", "odd"],
)
def test_heads_that_do_not_divide_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="heads do not divide"):
        new_llama(tiny_tokenizer(), SMALL.model_copy(update=changes))


@pytest.mark.parametrize("pad", [None, "<|end|>"], ids=["none", "the end"])
def test_tokenizer_without_padding_is_refused(pad: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    with pytest.raises(ModelError, match="does not fit a new model"):
        new_llama(tokenizer, SMALL)
