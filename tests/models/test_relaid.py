"""Weights in another order: the same products meanwhile, the same bits and storage afterwards."""

import copy
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from trueward.models import onednn, relaid_table
from trueward.models.relaid import laid_out
from trueward.models.tiny import KINDS, Kind, tiny_model

DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not onednn.available(torch.bfloat16), reason="oneDNN has no bfloat16 order on this processor"
        ),
    ),
]


def model_of(kind: Kind, seed: int = 0, vocab_size: int = 320) -> PreTrainedModel:
    """Layers of which every weight is as large in the other order, as those of real models are."""
    return tiny_model(kind, seed, vocab_size=vocab_size, width=128, scale=2.0)


def lying_otherwise(model: nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_as_they_were(kind: Kind, dtype: torch.dtype) -> None:
    model = model_of(kind, 1).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with laid_out(model) as num_mapped:
            assert num_mapped == 0
            linears = [module for module in model.modules() if type(module) is nn.Linear]
            tables = [module for module in model.modules() if type(module) is nn.Embedding]
            tied = [table for table in tables if table.weight is model.get_output_embeddings().weight]
            assert lying_otherwise(model) == len(linears) + len(tied)
            got = model(input_ids=ids).logits
    assert lying_otherwise(model) == 0
    # Widths of 32 to 64: a few roundings of the precision on logits of about 2.
    torch.testing.assert_close(got, expected, atol=20 * torch.finfo(dtype).eps, rtol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_weight_stands_in_memory_once() -> None:
    tied, untied = model_of("qwen3"), model_of("llama")
    with laid_out(tied), laid_out(untied):
        assert untied.lm_head.weight.numel() == 0
        # The embeddings read it too, from the same blocks.
        assert tied.lm_head.weight.numel() == tied.model.embed_tokens.weight.numel() == 0
        for model in (tied, untied):
            weight = model.model.layers[0].mlp.up_proj.weight
            assert weight.numel() == weight.untyped_storage().nbytes() == 0


def test_who_reads_a_weight_meanwhile_fails() -> None:
    model = model_of("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    with laid_out(model), pytest.raises(RuntimeError):
        nn.functional.linear(torch.ones(1, 32), weight)


def test_weights_come_back_after_an_error_and_train_on() -> None:
    model = model_of("llama", 2)
    other = copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, other)]
    ids = torch.arange(3, 13).unsqueeze(0)
    alias = model.model.layers[0].mlp.up_proj.weight.detach()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), laid_out(model):
            raise ZeroDivisionError
        for each, optimizer in zip((model, other), optimizers, strict=True):
            each(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(got, expected), name
    # The storage is the same one: who held a view of the weight sees what was trained.
    assert torch.equal(alias, model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("call", ["moved", "move_back"])
def test_ctrl_c_leaves_no_weight_in_the_other_order(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, call: str
) -> None:
    model = model_of(kind, 1)
    with laid_out(model):
        pass
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = getattr(onednn, call)
    calls: list[int] = []

    def interrupted(*arguments: torch.Tensor) -> object:
        result: object = work(*arguments)
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(onednn, call, interrupted)
    with pytest.raises(KeyboardInterrupt), laid_out(model):
        pass
    assert len(calls) >= 3 and lying_otherwise(model) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_adapters_go_on_working() -> None:
    model = get_peft_model(model_of("llama", 1), LoraConfig(r=2, init_lora_weights=False))
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with laid_out(model):
            got = model(input_ids=ids).logits
            with model.disable_adapter():
                assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_weights_of_a_file_and_other_precisions_stay(tmp_path: object) -> None:
    model = model_of("llama")
    model.save_pretrained(str(tmp_path))
    mapped = type(model).from_pretrained(str(tmp_path))
    with laid_out(mapped) as num_mapped:
        assert lying_otherwise(mapped) == 0
        assert num_mapped == sum(type(module) is nn.Linear for module in mapped.modules())
    with laid_out(model_of("llama").double()) as num_mapped:
        assert num_mapped == 0


def test_an_order_that_does_not_give_the_weight_back_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_TRIED", {})
    copied = onednn.copied
    monkeypatch.setattr(onednn, "copied", lambda weight: copied(weight.roll(1)))
    model = model_of("llama")
    before = model.lm_head.weight.detach().clone()
    with laid_out(model):
        assert lying_otherwise(model) == 0
        assert torch.equal(model.lm_head.weight, before)


def test_a_weight_that_is_larger_in_the_other_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_TRIED", {})
    tried: list[torch.Size] = []
    serves = onednn._serves
    # To try one that is larger would be to read beyond its memory.
    monkeypatch.setattr(onednn, "_serves", lambda weight: tried.append(weight.shape) or serves(weight))
    model = nn.Sequential(nn.Linear(32, 96, bias=False), nn.Linear(96, 64), nn.Linear(64, 63))
    fits = [
        torch.ops.mkldnn._nbytes(onednn.copied(layer.weight.detach())) == layer.weight.nbytes
        for layer in model
    ]
    if all(fits):
        pytest.skip("this build of oneDNN has an order in which no weight is larger")
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(rows)
        with laid_out(model) as num_mapped:
            assert ["forward" in vars(layer) for layer in model] == fits and num_mapped == 0
            torch.testing.assert_close(model(rows), expected, atol=1e-5, rtol=0)
    assert tried == [layer.weight.shape for layer, fit in zip(model, fits, strict=True) if fit]


@pytest.mark.parametrize("num_words", [320, 263])  # the last block of the second is larger in the other order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tied_table_is_read_in_blocks(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, num_words: int
) -> None:
    monkeypatch.setattr(relaid_table, "_BLOCK_WORDS", 64)
    model = model_of("qwen3", 1, num_words).to(dtype)
    before = model.lm_head.weight.detach().clone()
    # Words of every block, the last one too, some twice; and one word alone, as in a step.
    ids = torch.tensor([[0, 63, 64, 120, 120, 199, 3, 256, num_words - 1, 0]])
    with torch.no_grad():
        for some in (ids, ids[:, :1]):
            expected = model.model.embed_tokens(some), model(input_ids=some).logits
            with laid_out(model):
                assert lying_otherwise(model.model.embed_tokens) == 1
                got = model.model.embed_tokens(some), model(input_ids=some).logits
            assert torch.equal(got[0], expected[0])
            torch.testing.assert_close(got[1], expected[1], atol=20 * torch.finfo(dtype).eps, rtol=0)
    assert torch.equal(model.lm_head.weight, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_table_is_whole_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaid_table, "_BLOCK_WORDS", 64)
    model = model_of("qwen3", 1)
    with laid_out(model):
        pass
    before = model.lm_head.weight.detach().clone()
    copied = onednn.copied

    def failing(weight: torch.Tensor) -> torch.Tensor:
        if len(weight) == 64 and torch.equal(weight, before[128:192]):
            raise MemoryError
        return copied(weight)

    monkeypatch.setattr(onednn, "copied", failing)
    with pytest.raises(MemoryError), laid_out(model):
        pass
    assert torch.equal(model.lm_head.weight, before) and lying_otherwise(model) == 0


def test_a_table_that_others_read_or_that_does_more_is_kept_twice() -> None:
    model = model_of("qwen3")
    model.third = nn.Linear(*model.lm_head.weight.T.shape, bias=False)
    model.third.weight = model.lm_head.weight
    scaled = model_of("gemma3")
    for each in (model, scaled):
        with laid_out(each):
            assert each.lm_head.weight.numel() > 0
            assert torch.equal(each.lm_head.weight, each.model.embed_tokens.weight)


def test_a_table_whose_words_cannot_be_read_alone_is_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "places", lambda weight: None)
    model = model_of("qwen3", 1)
    with laid_out(model):
        assert model.lm_head.weight.numel() > 0
        assert lying_otherwise(model.model.embed_tokens) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 32), (192, 96), (320, 64)])
def test_elements_are_read_where_they_lie(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = onednn.places(weight)
    assert found is not None
    rows_O, columns_I = found
    other = weight.clone()
    laid = onednn.moved(other)
    assert torch.ops.mkldnn.data_ptr(laid) == other.data_ptr()
    assert torch.equal(other.flatten()[rows_O.unsqueeze(1) + columns_I], weight)
    onednn.move_back(other, laid)
    assert torch.equal(other, weight)


def test_an_order_that_is_not_rows_plus_columns_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_PLACES", {})
    copied = onednn.copied
    # The last element of every copy lies somewhere else.
    odd = torch.arange(64 * 32)
    odd[-2:] = odd[-2:].flip(0)
    monkeypatch.setattr(onednn, "copied", lambda weight: copied(weight.flatten()[odd].view(weight.shape)))
    assert onednn.places(torch.randn(64, 32)) is None


def test_a_build_without_tensors_of_given_memory_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_library", lambda: None)
    model = model_of("qwen3")
    with laid_out(model) as num_mapped:
        assert lying_otherwise(model) == num_mapped == 0
