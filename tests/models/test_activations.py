"""A forward that keeps less has the states and gradients of the forward that keeps everything."""

import copy
import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.models.rows import MIXED, random_groups
from trueward.models import activations
from trueward.models.lora import LoraSettings, apply_lora
from trueward.models.memory import TrainingMemory
from trueward.models.norms import is_rms_norm, rms_norm
from trueward.models.packing import Packed, pack
from trueward.models.products import product, recomputed
from trueward.models.scoring import hidden_states, unwrap
from trueward.models.tiny import KINDS, Kind, tiny_model
from trueward.trainers.loop import checkpoint_activations


@pytest.fixture(autouse=True)
def _small_forwards_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_LEAST_ELEMENTS", 0)


@pytest.fixture(params=["alone", "memory"])
def memory(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainingMemory | None]:
    if request.param == "alone":
        yield None
        return
    monkeypatch.setattr("trueward.models.memory._LEAST_KEPT", 64)
    monkeypatch.setattr("trueward.models.memory._LEAST_APART", 64)
    made = TrainingMemory()
    with made.used():
        yield made


def gradients(model: nn.Module, packed: Packed, rows_n: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    states_nD = hidden_states(model, packed, rows_n)
    torch.manual_seed(5)
    (states_nD * torch.randn_like(states_nD)).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return states_nD.detach(), found


def plainly(model: nn.Module, packed: Packed, rows_n: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "_LEAST_ELEMENTS", 1 << 60)
        return gradients(model, packed, rows_n)


def with_adapters(model: nn.Module) -> nn.Module:
    adapted = apply_lora(model, LoraSettings(), seed=0).double()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


@pytest.fixture(params=["plain norms", "norms in few passes"])
def accuracy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How closely float64 gradients agree: the norms of transformers compute in float32."""
    if request.param == "plain norms":
        monkeypatch.setattr(activations, "is_rms_norm", lambda module: False)
        return 1e-10
    return 2e-4


@pytest.mark.parametrize("some_rows", [False, True], ids=["all rows", "some rows"])
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_plain_forward(
    kind: Kind, adapters: bool, some_rows: bool, memory: TrainingMemory | None, accuracy: float
) -> None:
    model: nn.Module = tiny_model(kind, 3).double()
    model = with_adapters(model) if adapters else model
    packed = pack(random_groups(1, MIXED))
    rows_n = packed.predict_N if some_rows else None
    expected_nD, expected = plainly(model, packed, rows_n)
    got_nD, got = gradients(model, packed, rows_n)
    torch.testing.assert_close(got_nD, expected_nD, atol=accuracy, rtol=0)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=accuracy, rtol=accuracy, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_gradients_are_those_of_autocast(kind: Kind, memory: TrainingMemory | None) -> None:
    model = tiny_model(kind, 3)
    packed = pack(random_groups(1, MIXED))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_LD, expected = plainly(model, packed, None)
        got_LD, got = gradients(model, packed, None)
    torch.testing.assert_close(got_LD, expected_LD, atol=0.03, rtol=0.02)
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(got[name], value, atol=0.03 * scale, rtol=0.05, msg=name)


def kept_bytes(model: nn.Module, packed: Packed) -> int:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack_(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda tensor: tensor):
        hidden_states(model, packed)
    return sum(sizes.values())


def test_less_is_kept() -> None:
    model = tiny_model("llama", 3)
    packed = pack(random_groups(1, MIXED))
    less = kept_bytes(model, packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "_LEAST_ELEMENTS", 1 << 60)
        assert less < 0.7 * kept_bytes(model, packed)


def test_a_second_forward_may_come_before_the_backward_of_the_first(
    memory: TrainingMemory | None, accuracy: float
) -> None:
    model = tiny_model("llama", 3).double()
    first, second = pack(random_groups(1, MIXED)), pack(random_groups(2, MIXED))
    _, one = plainly(model, first, None)
    _, other = plainly(model, second, None)
    torch.manual_seed(5)
    states = hidden_states(model, first)
    weights = torch.randn_like(states)
    later = hidden_states(model, second)
    torch.manual_seed(5)
    ((states * weights).sum() + (later * torch.randn_like(later)).sum()).backward()
    for name, parameter in model.named_parameters():
        if name in one:
            torch.testing.assert_close(parameter.grad, one[name] + other[name], atol=accuracy, rtol=accuracy)


def test_micro_batches_add_up(memory: TrainingMemory | None) -> None:
    model = tiny_model("qwen3", 3).double()
    packed = pack(random_groups(1, MIXED))
    _, once = gradients(model, packed, None)
    for _ in range(2):
        states = hidden_states(model, packed)
        torch.manual_seed(5)
        (states * torch.randn_like(states)).sum().backward()
    for name, parameter in model.named_parameters():
        if name in once:
            torch.testing.assert_close(parameter.grad, 2 * once[name], atol=1e-9, rtol=1e-9)


def test_checkpointed_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 3).double()
    packed = pack(random_groups(1, MIXED))
    monkeypatch.setattr(activations, "is_rms_norm", lambda module: False)
    _, expected = plainly(model, packed, None)
    checkpoint_activations(model)
    model.train()
    _, got = gradients(model, packed, None)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-10, rtol=1e-9)


def test_no_forward_stays_behind_after_an_error() -> None:
    model = tiny_model("llama", 3)
    with pytest.raises(ZeroDivisionError), activations.few_activations(model.base_model, 100):
        assert any("forward" in module.__dict__ for module in model.modules())
        _ = 1 / 0
    assert not any("forward" in module.__dict__ for module in model.modules())


def _replaced(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in module.__dict__}


def test_without_gradient_or_too_small_only_norms_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 3)
    with torch.no_grad(), activations.few_activations(model.base_model, 100):
        assert _replaced(model) == {"LlamaRMSNorm"}
    monkeypatch.setattr(activations, "_LEAST_ELEMENTS", 1 << 18)
    with activations.few_activations(model.base_model, 100):
        assert _replaced(model) == {"LlamaRMSNorm"}
    assert not _replaced(model)


class TwiceGated(nn.Module):
    """Has the parts of a gated MLP, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        self.down_proj, self.act_fn = nn.Linear(6, 4), nn.SiLU()

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.down_proj(2 * self.act_fn(self.gate_proj(states)) * self.up_proj(states))
        return out


class ShiftedRMSNorm(nn.Module):
    """The norm of Gemma: its weight is what is added to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(6)), 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return (1 + self.weight) * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.eps)


def test_a_part_that_only_looks_like_a_known_one_is_not_taken_for_it() -> None:
    assert not activations._is_gated(TwiceGated())
    assert not is_rms_norm(ShiftedRMSNorm())
    layer = tiny_model("llama", 3).base_model.layers[0]
    assert activations._is_gated(layer.mlp)
    assert is_rms_norm(layer.input_layernorm)


def test_trying_a_part_draws_no_random_numbers() -> None:
    model = apply_lora(tiny_model("llama", 3), LoraSettings(dropout=0.5), seed=0).train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert activations._is_gated(unwrap(model).base_model.layers[0].mlp)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert unwrap(model).base_model.layers[0].mlp.training


class Limited(TwiceGated):
    """Of one class: the formula, or not, by its configuration."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, states: Tensor) -> Tensor:
        gated = self.act_fn(self.gate_proj(states)) * self.up_proj(states)
        out: Tensor = self.down_proj(gated.clamp(max=self.limit))
        return out


def test_modules_of_one_class_are_tried_each() -> None:
    torch.manual_seed(0)
    assert activations._is_gated(Limited(float("inf")))
    assert not activations._is_gated(Limited(-1.0))


def test_rms_norm_by_hand() -> None:
    # x = (3, 4): the mean square is 12.5, so u = x / 3.5355 = (0.8485, 1.1314), and y = w u.
    # With g = (1, 0) and w = (2, 1): g w = (2, 0), mean(g w u) = 0.8485,
    # the gradient of x is ((2, 0) - (0.8485, 1.1314) 0.8485) / 3.5355 = (0.3620, -0.2715) and that of w is
    # (0.8485, 0).
    module = nn.RMSNorm(2, eps=1e-12).double()
    module.weight.data = torch.tensor([2.0, 1.0]).double()
    states = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    result = rms_norm(module, states)
    result.backward(torch.tensor([[1.0, 0.0]]).double())
    torch.testing.assert_close(result.detach(), torch.tensor([[1.6971, 1.1314]]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(states.grad, torch.tensor([[0.3620, -0.2715]]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(module.weight.grad, torch.tensor([0.8485, 0.0]).double(), atol=1e-4, rtol=0)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    norm, layer = nn.RMSNorm(5, eps=1e-6).double(), nn.Linear(5, 4).double()

    def all_of_it(states: Tensor, weight: Tensor) -> Tensor:
        norm.weight.data = weight.detach()
        normed = rms_norm(norm, states)
        return product(layer, recomputed(lambda x: torch.tanh(x) * x, normed))

    states = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: all_of_it(x, norm.weight), (states,))


def test_extremes_of_the_norm() -> None:
    module = nn.RMSNorm(4, eps=1e-6)
    for value in (0.0, 1e-20, 1e4):
        states = torch.full((1, 4), value, requires_grad=True)
        plain = states.detach().clone().requires_grad_()
        rms_norm(module, states).sum().backward()
        module(plain).sum().backward()
        torch.testing.assert_close(states.grad, plain.grad, rtol=1e-4, atol=1e-6 / max(value, 1e-3))


def test_kept_tensors_are_freed_and_their_room_is_used_again() -> None:
    memory = TrainingMemory()
    model = copy.deepcopy(tiny_model("llama", 3))
    packed = pack(random_groups(1, MIXED))
    with pytest.MonkeyPatch.context() as patch, memory.used():
        patch.setattr("trueward.models.memory._LEAST_KEPT", 64)
        stack = memory._stack
        assert stack is not None
        tops = []
        for _ in range(3):
            states = hidden_states(model, packed)
            tops.append(stack._top)
            states.sum().backward()
            del states
        gc.collect()
        assert tops[0] > 0
        assert tops == [tops[0]] * 3
        stack.empty(1, torch.float32)
        assert stack._top == 64
