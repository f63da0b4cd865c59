"""The last layer on the rows that are read gives them what the whole layer gives, forward and backward."""

import copy

import pytest
import torch
from torch import nn

from tests.models.rows import MIXED, random_groups
from trueward.models import activations, last_layer, routes
from trueward.models.last_layer import last_layer_parts, only_rows
from trueward.models.lora import LoraSettings, apply_lora
from trueward.models.packing import pack
from trueward.models.scoring import hidden_states
from trueward.models.tiny import KINDS, Kind, tiny_model
from trueward.trainers.loop import checkpoint_activations


def last_layer_of(model: nn.Module) -> nn.Module:
    backbone = routes.unwrap(model).base_model
    return next(m for m in backbone.children() if isinstance(m, nn.ModuleList))[-1]


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_states_and_gradients_of_the_whole_layer(kind: Kind, adapters: bool) -> None:
    model: nn.Module = tiny_model(kind, 3).double()
    if adapters:
        model = apply_lora(model, LoraSettings(), seed=0).double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    packed = pack(random_groups(1, MIXED))
    assert len(packed.predict_N) > len(packed.predict_N.unique()), "rows need not be distinct"
    got_ND = hidden_states(model, packed, packed.predict_N)
    expected_ND = hidden_states(model, packed)[packed.predict_N]
    torch.testing.assert_close(got_ND, expected_ND, atol=1e-12, rtol=0)
    weights_ND = torch.randn_like(got_ND)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad((expected_ND * weights_ND).sum(), trained, allow_unused=True)
    got = torch.autograd.grad((got_ND * weights_ND).sum(), trained, allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


def test_only_the_rows_that_are_read_are_computed() -> None:
    model = tiny_model("llama", 3)
    packed = pack(random_groups(1, MIXED))
    hidden_states(model, packed)
    seen: list[int] = []
    last_layer_of(model).mlp.gate_proj.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    hidden_states(model, packed, packed.last_S)
    hidden_states(model, packed)
    assert seen == [packed.num_sequences, packed.num_tokens]


def test_no_hook_stays_behind_after_an_error() -> None:
    model = tiny_model("llama", 3)
    parts = last_layer_parts(model.base_model)
    assert len(parts) == 3
    with pytest.raises(ZeroDivisionError), only_rows(parts, torch.arange(2), 4):
        _ = 1 / 0
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_a_layer_with_unknown_parts_is_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 3)
    packed = pack(random_groups(1, MIXED))
    monkeypatch.setattr(last_layer, "_PARTS", ("experts",))
    assert last_layer_parts(model.base_model) == ()
    expected_SD = hidden_states(model, packed)[packed.last_S]
    assert hidden_states(model, packed, packed.last_S).equal(expected_SD)


class Mixing(nn.Module):
    """An MLP whose result depends on other tokens: computed on some rows it gives something else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states_1LD: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.inner(states_1LD) + states_1LD.mean(1, keepdim=True)
        return mixed


def test_a_part_that_mixes_tokens_is_found_out() -> None:
    model = tiny_model("llama", 3, scale=5.0)
    last_layer_of(model).mlp = Mixing(last_layer_of(model).mlp)
    # Its packed and padded rows differ too, so the trial is called alone, on the packed forward.
    row = routes._probe_row(263, model.device)
    routes.install(model)
    with torch.no_grad():
        expected_LD = routes.run_backbone(
            model, row.input_ids_1L, row.position_ids_1L, row.attention("buckets")
        )
        assert not routes._trial_of_rows(model, row, "buckets", expected_LD)


def test_a_part_that_cannot_be_cut_is_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IndexError("a result with other axes")

    model = tiny_model("llama", 3)
    monkeypatch.setattr(last_layer, "_spread", refuse)
    packed = pack(random_groups(1, MIXED))
    expected_SD = hidden_states(model, packed)[packed.last_S]
    assert hidden_states(model, packed, packed.last_S).equal(expected_SD)


def recomputing(model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_computed_again_have_the_same_gradients(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Layers that are computed again keep the norms of transformers, which sum in another order.
    monkeypatch.setattr(activations, "is_rms_norm", lambda module: False)
    model = tiny_model(kind, 3)
    packed = pack(random_groups(1, MIXED))
    plain, ours = copy.deepcopy(model), copy.deepcopy(model).train()
    checkpoint_activations(ours)
    assert last_layer_parts(ours.base_model) != ()
    for each in (recomputing(model), ours, plain.train()):
        hidden_states(each, packed, packed.last_S).sum().backward()
    for one, other, expected in zip(model.parameters(), ours.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(one.grad, expected.grad, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(other.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_a_last_layer_that_is_computed_again_is_computed_whole() -> None:
    model = recomputing(tiny_model("llama", 3))
    assert last_layer_parts(model.base_model) == ()
