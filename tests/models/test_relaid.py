"""Weights in another order: the same products meanwhile, the same bits and storage afterwards."""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trueward.models import onednn, relaid_joint, relaid_table
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


def lying_otherwise(model: nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_as_they_were(kind: Kind, dtype: torch.dtype) -> None:
    model = tiny_model(kind, 1).to(dtype)
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
    tied, untied = tiny_model("qwen3"), tiny_model("llama")
    with laid_out(tied), laid_out(untied):
        assert untied.lm_head.weight.numel() == 0
        # The embeddings read it too, from the same blocks.
        assert tied.lm_head.weight.numel() == tied.model.embed_tokens.weight.numel() == 0
        for model in (tied, untied):
            weight = model.model.layers[0].mlp.up_proj.weight
            assert weight.numel() == weight.untyped_storage().nbytes() == 0


def test_who_reads_a_weight_meanwhile_fails() -> None:
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    with laid_out(model), pytest.raises(RuntimeError):
        nn.functional.linear(torch.ones(1, 32), weight)


def test_weights_come_back_after_an_error_and_train_on() -> None:
    model = tiny_model("llama", 2)
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


def test_adapters_go_on_working() -> None:
    model = get_peft_model(tiny_model("llama", 1), LoraConfig(r=2, init_lora_weights=False))
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with laid_out(model):
            got = model(input_ids=ids).logits
            with model.disable_adapter():
                assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_weights_of_a_file_and_other_precisions_stay(tmp_path: object) -> None:
    model = tiny_model("llama")
    model.save_pretrained(str(tmp_path))
    mapped = type(model).from_pretrained(str(tmp_path))
    with laid_out(mapped) as num_mapped:
        assert lying_otherwise(mapped) == 0
        assert num_mapped == sum(type(module) is nn.Linear for module in mapped.modules())
    with laid_out(tiny_model("llama").double()) as num_mapped:
        assert num_mapped == 0


def test_an_order_that_does_not_give_the_weight_back_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_TRIED", {})
    packed = onednn.packed
    monkeypatch.setattr(onednn, "packed", lambda weight: packed(weight.roll(1)))
    model = tiny_model("llama")
    with laid_out(model):
        assert lying_otherwise(model) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tied_table_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(relaid_table, "_BLOCK_WORDS", 50)
    model = tiny_model("qwen3", 1).to(dtype)
    before = model.lm_head.weight.detach().clone()
    # Words of every block, the last and shorter one too, some twice; and one word alone, as in a step.
    ids = torch.tensor([[0, 49, 50, 120, 120, 199, 3, 262, 250, 0]])
    with torch.no_grad():
        for some in (ids, ids[:, :1]):
            expected = model.model.embed_tokens(some), model(input_ids=some).logits
            with laid_out(model):
                got = model.model.embed_tokens(some), model(input_ids=some).logits
            assert torch.equal(got[0], expected[0])
            torch.testing.assert_close(got[1], expected[1], atol=20 * torch.finfo(dtype).eps, rtol=0)
    assert torch.equal(model.lm_head.weight, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_table_is_whole_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaid_table, "_BLOCK_WORDS", 50)
    model = tiny_model("qwen3", 1)
    with laid_out(model):
        pass
    before = model.lm_head.weight.detach().clone()
    packed = onednn.packed

    def failing(weight: torch.Tensor) -> torch.Tensor:
        if len(weight) == 50 and torch.equal(weight, before[100:150]):
            raise MemoryError
        return packed(weight)

    monkeypatch.setattr(onednn, "packed", failing)
    with pytest.raises(MemoryError), laid_out(model):
        pass
    assert torch.equal(model.lm_head.weight, before) and lying_otherwise(model) == 0


def test_a_table_that_others_read_or_that_does_more_is_kept_twice() -> None:
    model = tiny_model("qwen3")
    model.third = nn.Linear(*model.lm_head.weight.T.shape, bias=False)
    model.third.weight = model.lm_head.weight
    scaled = tiny_model("gemma3")
    for each in (model, scaled):
        with laid_out(each):
            assert each.lm_head.weight.numel() > 0
            assert torch.equal(each.lm_head.weight, each.model.embed_tokens.weight)


def test_a_table_whose_words_cannot_be_read_alone_is_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "places", lambda weight: None)
    model = tiny_model("qwen3", 1)
    with laid_out(model):
        assert model.lm_head.weight.numel() > 0
        assert lying_otherwise(model.model.embed_tokens) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(50, 32), (129, 40), (300, 7), (1, 5)])
def test_elements_are_read_where_they_lie(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = onednn.places(weight)
    assert found is not None
    rows_O, columns_I = found
    laid = onednn.packed(weight)
    assert torch.equal(onednn.elements(laid, dtype)[rows_O.unsqueeze(1) + columns_I], weight)


def test_an_order_that_is_not_rows_plus_columns_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_PLACES", {})
    packed = onednn.packed
    # The last element of every copy lies somewhere else.
    odd = torch.arange(200)
    odd[-2:] = odd[-2:].flip(0)
    monkeypatch.setattr(onednn, "packed", lambda weight: packed(weight.flatten()[odd].view(weight.shape)))
    assert onednn.places(torch.randn(10, 20)) is None


class Siblings(nn.Module):
    """Three layers of one width and what they make of some rows."""

    def __init__(self, *, bias: tuple[bool, ...] = (False, False, False)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(32, size, bias=each) for size, each in zip((48, 16, 24), bias, strict=True)
        )

    def together(self) -> bool:
        return isinstance(vars(self.q_proj).get("forward"), partial)


@torch.no_grad()
def test_layers_that_read_the_same_rows_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Siblings(bias=(True, True, True))
    rows, others = torch.randn(5, 32), torch.randn(3, 32)
    expected = [(layer(rows), layer(others)) for layer in model.children()]
    calls: list[int] = []
    product = onednn.product
    with laid_out(model):
        assert model.together()

        def counted(*arguments: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return product(*arguments)

        monkeypatch.setattr(onednn, "product", counted)
        got = [layer(rows) for layer in model.children()]
        assert len(calls) == 1
        # In any order, alone, and again.
        got_others = [layer(others) for layer in reversed(list(model.children()))][::-1]
        again = model.k_proj(rows)
        # Others than its sibling got last.
        torch.testing.assert_close(model.v_proj(others), expected[2][1], atol=1e-5, rtol=0)
    for mine, other, (own, of_others) in zip(got, got_others, expected, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=0)
        torch.testing.assert_close(other, of_others, atol=1e-5, rtol=0)
    assert torch.equal(again, got[1])


@torch.no_grad()
def test_rows_that_changed_between_two_layers_are_multiplied_anew() -> None:
    model = Siblings()
    rows = torch.randn(5, 32)
    with laid_out(model):
        model.q_proj(rows)
        rows.mul_(2)
        got = model.k_proj(rows)
    torch.testing.assert_close(got, model.k_proj(rows), atol=1e-5, rtol=0)


def test_layers_that_are_large_or_unlike_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    unlike, mixed, large = Siblings(bias=(True, False, False)), Siblings(), Siblings()
    mixed.v_proj.weight = nn.Parameter(mixed.v_proj.weight.detach().double())
    for model in (unlike, mixed):
        with laid_out(model):
            assert not model.together()
    monkeypatch.setattr(relaid_joint, "_MOST_BYTES", 4 * 88 * 32 - 1)
    with laid_out(large):
        assert not large.together() and lying_otherwise(large) == 3


def test_a_joint_weight_is_tried_in_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    works = onednn.works
    monkeypatch.setattr(onednn, "works", lambda weight: len(weight) != 48 + 16 + 24 and works(weight))
    model = Siblings()
    with laid_out(model):
        assert not model.together() and lying_otherwise(model) == 3
