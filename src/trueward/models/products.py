"""Products with weights that keep no more than they must, and add the gradient of a weight in place.

A product needs its input again, for the gradient of its weight. Where the input is the result of a cheap
step, the product remembers the step instead, and it is run again in the backward, to the same bits.
Axes: N tokens (any leading axes), I input width, O output width.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from trueward.models.memory import TrainingMemory, current_memory

__all__ = ["Owner", "Source", "comes_from", "owner_of", "product", "recomputed"]

_BLOCK_ELEMENTS = 1 << 22
# A GPU needs products of thousands of rows to be busy; 2 ** 27 bfloat16 are 256 MiB.
_BLOCK_ELEMENTS_GPU = 1 << 27
# Rows of a block are a multiple: a matrix that starts at an odd address is multiplied by slower kernels.
_BLOCK_ROWS = 8


class Source(Protocol):
    """Where a tensor comes from that is not kept."""

    def result(self) -> Tensor:
        """The tensor, without gradient; asked for in the backward, before that of the step that made it."""
        ...


_SOURCES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def comes_from(result: Tensor, source: Source) -> None:
    """Products that take `result` shall keep its source instead."""
    if result.requires_grad:
        _SOURCES[result] = source


class _Step:
    """A step whose result is not kept. The products that took it, and the step's own backward after them,
    share one second run."""

    __slots__ = ("_again", "_node", "_num_inputs", "run")

    def __init__(self, run: Callable[..., Tensor], num_inputs: int) -> None:
        self.run, self._num_inputs = run, num_inputs
        self._node: ref[Any] | None = None
        self._again: tuple[list[Tensor], Tensor] | None = None

    def of(self, node: Any) -> None:
        """The node of the graph that keeps the inputs, and this step too."""
        self._node = ref(node)

    def result(self) -> Tensor:
        return self.again()[1].detach()

    def again(self) -> tuple[list[Tensor], Tensor]:
        """Inputs and weights, and the result with a graph from them."""
        if self._again is None:
            node = None if self._node is None else self._node()
            assert node is not None, "a product's backward runs before that of its input"
            needed = node.needs_input_grad[2:]
            saved: tuple[Tensor, ...] = node.saved_tensors
            inputs = [
                tensor.detach().requires_grad_(needs)
                for tensor, needs in zip(saved[: self._num_inputs], needed, strict=False)
            ]
            with torch.enable_grad():
                result = self.run(*inputs)
            # Weights are part of the step by way of its module: autograd finds them there.
            self._again = [*inputs, *saved[self._num_inputs :]], result
        return self._again

    def forget(self) -> None:
        self._again = None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.step = step
        step.of(ctx)
        ctx.save_for_backward(*tensors)
        return step.run(*tensors[:num_inputs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        tensors, result = ctx.step.again()
        ctx.step.forget()
        wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
        found = iter(torch.autograd.grad(result, wanted, grads))
        return None, None, *(next(found) if needs else None for needs in needed)


def recomputed(run: Callable[..., Tensor], *inputs: Tensor, weights: tuple[Tensor, ...] = ()) -> Tensor:
    """`run(*inputs)`, of which only the inputs are kept; a `product` that takes it keeps it neither.

    Args:
        run: gives the same bits whenever it is called; draws no random numbers.
        weights: tensors with gradient that it uses beside its inputs.
    """
    device = inputs[0].device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def same_precision(*values: Tensor) -> Tensor:
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return run(*values)

    step = _Step(same_precision, len(inputs))
    result: Tensor = _Recomputed.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        step, len(inputs), *inputs, *weights
    )
    comes_from(result, step)
    return result


class Owner(NamedTuple):
    """A weight whose gradient a product adds in place, and the memory with room for it."""

    weight_OI: nn.Parameter
    memory: TrainingMemory

    def add(self, grad_NO: Tensor, states_NI: Tensor) -> None:
        """`weight.grad += grad^T states`, summed in the precision of the weight: long sums in bfloat16 lose
        their terms."""
        total_OI = self.weight_OI.grad
        if total_OI is not None and total_OI.is_sparse:
            # Of rows that were looked up: the weight is also an embedding table.
            total_OI = self.memory.gradient_of(self.weight_OI).zero_().add_(total_OI)
        room_OI = self.memory.gradient_of(self.weight_OI) if total_OI is None else total_OI
        if grad_NO.dtype != self.weight_OI.dtype:
            for rows in _row_blocks(self.weight_OI):
                part_oI = grad_NO[:, rows].T @ states_NI
                _ = room_OI[rows].copy_(part_oI) if total_OI is None else room_OI[rows].add_(part_oI)
        elif total_OI is None:
            torch.mm(grad_NO.T, states_NI, out=room_OI)
        else:
            room_OI.addmm_(grad_NO.T, states_NI)
        self.weight_OI.grad = room_OI


def _row_blocks(weight_OI: Tensor) -> Iterator[slice]:
    """A vocabulary's gradient in sixteen bits need not exist as a whole beside that in float32."""
    num_rows, width = weight_OI.shape
    elements = _BLOCK_ELEMENTS if weight_OI.device.type == "cpu" else _BLOCK_ELEMENTS_GPU
    size = max(1, elements // (width * _BLOCK_ROWS)) * _BLOCK_ROWS
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


def owner_of(weight_OI: Tensor, states_NI: Tensor) -> Owner | None:
    """The weight where a product with states may add its gradient in place: in a training step with a
    memory, and a float32 (or better) parameter whose gradient only ever grows by addition. The states must
    have a gradient too, or autograd would not come by.

    For trainers, which only ever fill `.grad`: autograd would hold a matrix of the weight's size beside it
    for every forward, and another where the head is also the embedding table. `torch.autograd.grad` would
    see nothing.
    """
    memory = current_memory()
    if memory is None or type(weight_OI) is not nn.Parameter:
        return None
    if not (torch.is_grad_enabled() and states_NI.requires_grad):
        return None
    plain = weight_OI.requires_grad and weight_OI.is_leaf and not weight_OI._backward_hooks
    return Owner(weight_OI, memory) if plain and weight_OI.dtype in (torch.float32, torch.float64) else None


class _Product(torch.autograd.Function):
    """`states weight^T + bias`, in the precision of autocast where it is on."""

    @staticmethod
    def forward(
        ctx: Any,
        states_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        source: Source | None,
        owner: Owner | None,
        dtype: torch.dtype,
        memory: TrainingMemory | None,
    ) -> Tensor:
        ctx.source, ctx.owner, ctx.dtype = source, owner, dtype
        ctx.states_dtype, ctx.bias_dtype = states_NI.dtype, None if bias_O is None else bias_O.dtype
        cast_NI = states_NI.to(dtype)
        needs_states = ctx.needs_input_grad[1] or owner is not None
        ctx.save_for_backward(
            cast_NI if needs_states and source is None else None, weight_OI if owner is None else None
        )
        return _linear(cast_NI, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype), memory)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NO,) = grads
        states_NI, weight_OI = ctx.saved_tensors
        owner: Owner | None = ctx.owner
        if owner is not None:
            weight_OI = owner.weight_OI.detach()
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_states_NI = (grad_NO @ weight_OI.to(ctx.dtype)).to(ctx.states_dtype) if needs_states else None
        flat_NO = grad_NO.flatten(0, -2)
        grad_bias_O = flat_NO.sum(0).to(ctx.bias_dtype) if needs_bias else None
        grad_weight_OI: Tensor | None = None
        if needs_weight or owner is not None:
            if states_NI is None:
                states_NI = ctx.source.result().to(ctx.dtype)
            if owner is not None:
                owner.add(flat_NO, states_NI.flatten(0, -2))
            else:
                grad_weight_OI = (flat_NO.T @ states_NI.flatten(0, -2)).to(weight_OI.dtype)
        return grad_states_NI, grad_weight_OI, grad_bias_O, None, None, None, None


def _linear(
    states_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, memory: TrainingMemory | None
) -> Tensor:
    if memory is None:
        return nn.functional.linear(states_NI, weight_OI, bias_O)
    result_NO = memory.empty((*states_NI.shape[:-1], len(weight_OI)), states_NI.dtype, states_NI.device)
    flat_NO, flat_NI = result_NO.flatten(0, -2), states_NI.flatten(0, -2)
    if bias_O is None:
        torch.mm(flat_NI, weight_OI.T, out=flat_NO)
    else:
        torch.addmm(bias_O, flat_NI, weight_OI.T, out=flat_NO)
    return result_NO


def product(layer: nn.Linear, states_NI: Tensor, *, kept: bool = False) -> Tensor:
    """What the layer computes.

    Args:
        kept: the result will be kept for the backward, so it is made where such tensors lie.
    """
    device = states_NI.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_NI.dtype
    owner = owner_of(layer.weight, states_NI)
    source = _SOURCES.get(states_NI)  # type: ignore[no-untyped-call]  # untyped in torch
    with torch.autocast(device, enabled=False):
        result: Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            states_NI,
            layer.weight if owner is None else layer.weight.detach(),
            layer.bias,
            source,
            owner,
            dtype,
            current_memory() if kept else None,
        )
    return result
