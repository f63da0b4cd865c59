"""The lean step: the model's own numbers where it is used, and not used where it could not give them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from trueward.models.inner import backbone_of
from trueward.models.scoring import fallbacks, supports_packing
from trueward.models.tiny import Kind, tiny_model
from trueward.rollouts.decoding import SharedDecoder
from trueward.rollouts.lean import lean_layers

PROMPTS = [[3, 4, 5], [9, 8, 7, 6, 5, 4, 3, 2, 9, 8]]


@torch.no_grad()
def steps(model: PreTrainedModel, prompt_R: list[int], *, lean: bool | None, count: int = 14) -> Tensor:
    assert supports_packing(model)
    decoder = SharedDecoder(model, PROMPTS, prompt_R, lean=lean)
    decoder.start()
    return torch.stack([decoder.step(torch.arange(len(prompt_R)) + 5 + step) for step in range(count)])


@pytest.mark.parametrize("prompt_R", [[0, 1], [0, 0, 1, 1]], ids=["own prompts", "shared prompts"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_lean_steps_give_the_models_own_logits(kind: Kind, prompt_R: list[int]) -> None:
    model = tiny_model(kind, 3)
    got, expected = (steps(model, prompt_R, lean=lean) for lean in (True, False))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert torch.equal(steps(model, prompt_R, lean=None), got)
    assert fallbacks(model) == {}


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_other_layers_go_module_by_module_and_are_counted(kind: Kind) -> None:
    model = tiny_model(kind, 3)
    got = steps(model, [0, 1], lean=None)
    assert torch.equal(got, steps(model, [0, 1], lean=False))
    assert list(fallbacks(model).values()) == [1]


def test_adapters_are_in_place() -> None:
    model = tiny_model("llama", 3)
    bare = steps(model, [0, 1], lean=True)
    get_peft_model(model, LoraConfig(r=2, init_lora_weights=False))
    got, expected = (steps(model, [0, 1], lean=lean) for lean in (True, False))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(got, bare, atol=1e-2)


def test_a_layer_that_computes_something_else_is_found_out() -> None:
    model = tiny_model("llama", 3)
    kind = type(model.model.layers[0])

    class Scaled(kind):  # type: ignore[misc, valid-type]  # a class of transformers
        def forward(self, hidden: Tensor, **kwargs: object) -> Tensor:
            result: Tensor = super().forward(hidden, **kwargs)
            return result * 1.5

    model.model.layers[0].__class__ = Scaled
    assert torch.equal(steps(model, [0, 1], lean=None), steps(model, [0, 1], lean=False))
    assert list(fallbacks(model).values()) == [1]


@pytest.mark.parametrize("part", ["", "layers.0", "layers.1.self_attn"])
def test_hooks_on_parts_that_are_passed_over_are_not_lost(part: str) -> None:
    model = tiny_model("llama", 3)
    backbone = backbone_of(model)
    assert lean_layers(backbone) is not None
    module: nn.Module = backbone.get_submodule(part)
    handle = module.register_forward_pre_hook(lambda module, inputs: None)
    assert lean_layers(backbone) is None
    handle.remove()
    assert lean_layers(backbone) is not None
