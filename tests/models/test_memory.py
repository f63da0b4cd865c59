"""Memory apart from the heap: what is kept is the same, rooms are used again, and what does not fit stays."""

import gc
import mmap
import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trueward.models import memory as memory_module
from trueward.models.memory import TrainingMemory, _Stack, current_memory, zeros_apart


@pytest.fixture(autouse=True)
def _small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_LEAST_KEPT", 8)
    monkeypatch.setattr(memory_module, "_LEAST_APART", 8)


def test_zeros_have_shape_and_type_and_can_be_written() -> None:
    for like in (torch.empty(3, 4), torch.empty(5, dtype=torch.bfloat16), torch.empty(2, 3).T):
        zeros = zeros_apart(like)
        assert zeros.shape == like.shape
        assert zeros.dtype == like.dtype
        assert zeros.is_contiguous()
        assert not bool(zeros.any())
        zeros += 1
        assert bool((zeros == 1).all())


def test_a_stack_gives_back_from_the_top() -> None:
    stack = _Stack(1 << 16)
    first, second, third = (stack.empty(16, torch.float32) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    gaps = [second.data_ptr() - first.data_ptr(), third.data_ptr() - second.data_ptr()]
    assert gaps == [64, 64]
    at = second.data_ptr()
    del second
    gc.collect()
    above = stack.empty(16, torch.float32)
    assert above is not None
    assert above.data_ptr() > third.data_ptr(), "below something that is in use nothing is given"
    del above, third
    gc.collect()
    again = stack.empty(16, torch.float32)
    assert again is not None
    assert again.data_ptr() == at


def test_a_view_keeps_its_room() -> None:
    stack = _Stack(1 << 16)
    whole = stack.empty(16, torch.float32)
    assert whole is not None
    view = whole.view(4, 4)[1:]
    del whole
    gc.collect()
    other = stack.empty(16, torch.float32)
    assert other is not None
    assert other.data_ptr() >= view.data_ptr() + view.nbytes


def test_a_full_stack_says_so_and_tensors_stay_where_they_are() -> None:
    assert _Stack(64).empty(17, torch.float32) is None
    made = TrainingMemory()
    made._stack = _Stack(4096)
    states = torch.randn(64, 64, requires_grad=True)
    with made.keeping(()):
        loss = (states * states.exp()).sum()
    loss.backward()
    expected = (states.exp() * (1 + states)).detach()
    torch.testing.assert_close(states.grad, expected)
    assert made.empty((64, 64), torch.float32, states.device).shape == (64, 64)


@pytest.mark.parametrize("layout", ["as it is", "transposed", "part", "spread", "expanded"])
def test_what_is_kept_has_the_same_values(layout: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(12, 10, dtype=torch.float64)
    views = {
        "as it is": base,
        "transposed": base.T,
        "part": base[3:7],
        "spread": base[:, ::5],
        "expanded": base[:1].expand(12, 10),
    }
    states = views[layout]
    weight = torch.randn(states.shape, dtype=torch.float64, requires_grad=True)
    with TrainingMemory().keeping(()):
        out = (weight * states).sum()
    out.backward()
    torch.testing.assert_close(weight.grad, states, atol=0, rtol=0)


def test_weights_stay_where_they_are() -> None:
    layer, made = nn.Linear(8, 8), TrainingMemory()
    states = torch.randn(4, 8, requires_grad=True)
    with made.keeping(layer.parameters()):
        out = layer(states)
    stack = made._stack
    assert stack is not None
    assert stack._top == states.nbytes
    out.sum().backward()


def test_an_address_that_is_used_again_is_another_tensor() -> None:
    made = TrainingMemory()
    weights = [torch.randn(64, requires_grad=True) for _ in range(20)]
    values = []
    with made.keeping(()):
        total = torch.zeros(())
        for number, weight in enumerate(weights):
            # Freed with this turn: the next one may lie at the same address.
            value = torch.full((64,), float(number))
            values.append(value.clone())
            total = total + (weight * value).sum()
            del value
    total.backward()
    for weight, value in zip(weights, values, strict=True):
        torch.testing.assert_close(weight.grad, value, atol=0, rtol=0)


def test_what_is_written_in_place_between_two_uses_is_kept_twice() -> None:
    first, second = (torch.randn(64, requires_grad=True) for _ in range(2))
    value = torch.full((64,), 2.0)
    with TrainingMemory().keeping(()):
        total = (first * value).sum()
        value.mul_(3)
        total = total + (second * value).sum()
    total.backward()
    torch.testing.assert_close(first.grad, torch.full((64,), 2.0))
    torch.testing.assert_close(second.grad, torch.full((64,), 6.0))


def test_gradients_lie_in_the_same_room_in_every_step() -> None:
    made, weight = TrainingMemory(), nn.Parameter(torch.randn(4, 4))
    assert current_memory() is None
    with made.used():
        assert current_memory() is made
        assert made.gradient_of(weight) is made.gradient_of(weight)
    assert current_memory() is None
    assert made.gradient_of(nn.Parameter(weight.detach())).data_ptr() != made.gradient_of(weight).data_ptr()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are given back on Linux")
def test_pages_of_what_is_done_with_are_given_back() -> None:
    made = TrainingMemory()
    done, kept = nn.Parameter(torch.zeros(8 << 20)), nn.Parameter(torch.zeros(1 << 20))
    made.gradient_of(done).fill_(1.0)
    kept.grad = made.gradient_of(kept).fill_(2.0)
    below = made.empty((1 << 20,), torch.float32, done.device).fill_(3.0)
    above = made.empty((8 << 20,), torch.float32, done.device).fill_(4.0)
    before = resident_bytes()
    made.give_back()
    assert before - resident_bytes() == pytest.approx(32 << 20, rel=0.1), "the gradient that is cleared"
    del above
    made.give_back()
    assert before - resident_bytes() == pytest.approx(64 << 20, rel=0.1), "and what was freed from the stack"
    assert bool((kept.grad == 2).all())
    assert bool((below == 3).all())
    # Taken anew by the next step.
    made.gradient_of(done).fill_(5.0)
    assert bool((made.gradient_of(done) == 5).all())


def populates() -> bool:
    """Whether the kernel makes pages when asked (Linux, since 5.14)."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return (
        sys.platform.startswith("linux")
        and release is not None
        and tuple(map(int, release.groups())) >= (5, 14)
    )


@pytest.mark.skipif(not populates(), reason="asked of Linux since 5.14")
def test_pages_are_there_before_they_are_written() -> None:
    made, weight = TrainingMemory(), nn.Parameter(torch.zeros(8 << 20))
    before = resident_bytes()
    moment = zeros_apart(weight)
    assert resident_bytes() - before == pytest.approx(32 << 20, rel=0.1)
    room = made.gradient_of(weight)
    assert resident_bytes() - before == pytest.approx(64 << 20, rel=0.1)
    below = made.empty((8 << 20,), torch.float32, weight.device)
    assert resident_bytes() - before == pytest.approx(96 << 20, rel=0.1)
    del below, room
    made.give_back()
    assert resident_bytes() - before == pytest.approx(32 << 20, rel=0.1)
    made.gradient_of(weight)
    assert resident_bytes() - before == pytest.approx(64 << 20, rel=0.1), "taken again"
    made.empty((8 << 20,), torch.float32, weight.device)
    assert resident_bytes() - before == pytest.approx(96 << 20, rel=0.1)
    assert not moment.any()


def test_without_addresses_to_reserve_the_heap_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory_module, "_pages", refuse)
    made = TrainingMemory()
    assert made._stack is None
    states = torch.randn(64, requires_grad=True)
    with made.keeping(()):
        loss = states.square().sum()
    loss.backward()
    torch.testing.assert_close(states.grad, 2 * states.detach())
