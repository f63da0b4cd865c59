"""Compiled layers against uncompiled ones on a CPU, where torch's compiler traces flex-attention but has no
kernel with gradients: what is tested is what is traced, how often, and what happens where it cannot be."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from tests.models.rows import MIXED, plain_copy, plain_logps, random_groups
from trueward.models import compiled as compiled_module
from trueward.models import flex as flex_module
from trueward.models import routes
from trueward.models.compiled import compile_layers, windows_of
from trueward.models.flex import FlexPlan, compile_kernel
from trueward.models.packing import Packed, pack
from trueward.models.scoring import fallbacks, hidden_states, row_attention, score_completions
from trueward.models.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

Graphs = list[int]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """As on a GPU, rows of any length compiled; nodes of every graph that was compiled."""
    made: Graphs = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(len(graph.graph.nodes))
        return graph.forward  # type: ignore[no-any-return]

    torch.compiler.reset()
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    kernel = compile_kernel("eager")
    monkeypatch.setattr(flex_module, "compiled_kernel", lambda: kernel)
    monkeypatch.setattr(routes, "_KERNELS", {"cpu": ("flex", "buckets")})
    monkeypatch.setattr(routes, "LEAST_TOKENS", 1)
    monkeypatch.setattr(routes, "compile_layers", lambda backbone: compile_layers(backbone, backend=backend))
    compiled_module._compiled_call.cache_clear()
    yield made
    compiled_module._compiled_call.cache_clear()
    torch.compiler.reset()


def row(*, seed: int = 0, more: int = 0) -> Packed:
    return pack(random_groups(seed, [*MIXED, *[(30 + i, (20, 9)) for i in range(more)]]))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_log_probs_and_gradients_are_those_of_the_padded_forward(graphs: Graphs, kind: Any) -> None:
    model = tiny_model(kind, 3, width=64, scale=2.0)
    reference = plain_copy(model)
    groups = random_groups(1, [*MIXED, (70, (60, 33))])
    packed = pack(groups)
    got_N = score_completions(model, packed).logps_N
    step = row_attention(model, packed)
    assert isinstance(step, FlexPlan) and step.compiled
    assert not fallbacks(model) and graphs
    expected_N = torch.cat(plain_logps(reference, groups))
    torch.testing.assert_close(got_N, expected_N, atol=1e-5, rtol=1e-5)
    pairs = zip(gradients(model, got_N.sum()), gradients(reference, expected_N.sum()), strict=True)
    for got, expected in pairs:
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, atol=1e-4 * scale, rtol=1e-4)


def test_one_compilation_serves_all_layers_lengths_and_modes(graphs: Graphs) -> None:
    model = tiny_model("llama", 3)
    for mode in (True, False):
        model.train(mode)
        for more in (0, 3, 9, 1):
            gradients(model, hidden_states(model, row(more=more)).sum())
            assert all(module.training == mode for module in model.modules())
    assert len(graphs) == 1
    with torch.no_grad():
        hidden_states(model, row())
    assert len(graphs) == 2


def test_short_rows_and_ordinary_calls_are_not_compiled(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "LEAST_TOKENS", row().num_tokens + 1)
    model = tiny_model("llama")
    hidden_states(model, row())
    assert not graphs
    hidden_states(model, row(more=1))
    made = len(graphs)
    assert made
    hidden_states(model, row())
    model(torch.arange(5).unsqueeze(0))
    assert len(graphs) == made


def test_a_copy_computes_with_its_own_weights(graphs: Graphs) -> None:
    model = tiny_model("llama")
    before = hidden_states(model, row()).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    changed = hidden_states(other, row()).detach()
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(hidden_states(model, row()).detach(), before)
    torch.testing.assert_close(changed, hidden_states(plain_copy(other), row()).detach())


def test_layers_that_the_backward_computes_again_are_not_compiled(graphs: Graphs) -> None:
    model = tiny_model("llama")
    expected = gradients(model, hidden_states(model, row()).sum())
    made = len(graphs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = gradients(model.train(), hidden_states(model, row(seed=0)).sum())
    assert len(graphs) == made
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_model_that_cannot_be_compiled_says_so_once_and_counts(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such card")

    monkeypatch.setattr(routes, "compile_layers", lambda backbone: compile_layers(backbone, backend=backend))
    model = tiny_model("llama")
    got = hidden_states(model, row())
    hidden_states(model, row(more=1))
    (reason,) = fallbacks(model)
    assert "its layers cannot be compiled" in reason and "no such card" in reason
    assert fallbacks(model)[reason] == 2
    assert capsys.readouterr().err.count("uncompiled path") == 1
    torch.testing.assert_close(got, hidden_states(plain_copy(tiny_model("llama")), row()))


def test_a_forward_that_someone_put_on_a_layer_is_not_lost(graphs: Graphs) -> None:
    model = tiny_model("llama")
    expected = hidden_states(plain_copy(model), row())
    made = len(graphs)
    layer = model.model.layers[0]
    calls: list[int] = []
    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return inner(*args, **kwargs)

    layer.forward = forward
    torch.testing.assert_close(hidden_states(model, row()), expected)
    before = len(calls)
    hidden_states(model, row())
    assert before and len(calls) > before and len(graphs) == made
    (reason,) = fallbacks(model)
    assert "another forward" in reason


def test_a_later_call_that_cannot_be_compiled_falls_back(graphs: Graphs) -> None:
    model = tiny_model("llama")
    hidden_states(model, row())
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    # Asked for in training only: first out of the compiled layers, then out of flex-attention.
    hidden_states(model.train(), row(more=1))
    assert len(fallbacks(model)) == 2
    model.train(False)
    torch.testing.assert_close(
        hidden_states(model, row()), hidden_states(plain_copy(tiny_model("llama")), row())
    )


def test_windows_are_those_of_the_layers() -> None:
    assert windows_of(tiny_model("llama").model) == {None}
    assert len(windows_of(tiny_model("gemma3").model)) == 2
