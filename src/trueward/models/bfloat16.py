"""Products in bfloat16 on a processor without instructions for them: computed in float32, then rounded.

There torch multiplies element by element: a forward takes eight times as long as in float32, a gradient of
the states forty times. Both operands are exact in float32, so the products here are those of a processor that
has the instructions (sums in float32, one rounding at the end), about as fast as float32's own.
It is a mode of torch's dispatcher, for adapters, heads and backwards as well as layers, and only while a
model is run that needs it.
Axes: M rows, K the axis that is summed, N columns.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["bfloat16_products", "float32_products", "lacks_instructions"]

# Elements of a float32 copy that is made at once: 8 MiB, which a processor's caches hold or nearly do, and
# which the allocator finds again.
_BLOCK_ELEMENTS = 1 << 21
_WITHIN: ContextVar[bool] = ContextVar("bfloat16 products", default=False)


@cache
def lacks_instructions() -> bool:
    """Whether the processor lacks the instructions. Said by the library, not timed: a run that is resumed
    must compute as before."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and not bool(supported())


@cache
def _say_once() -> None:
    Console(stderr=True).print(
        "this processor has no bfloat16 products: they are computed in float32 and rounded, no faster than "
        "float32",
        markup=False,
    )


def _blocks(size: int, others: int) -> Iterator[slice]:
    """Slices of an axis, of so many elements each beside the other axes."""
    step = max(1, _BLOCK_ELEMENTS // max(1, others))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """The product in bfloat16. It goes along its longest axis in blocks: a vocabulary is never there whole in
    float32."""
    (num_rows, depth), num_columns = a_MK.shape, b_KN.shape[1]
    longest = max(num_rows, depth, num_columns)
    if longest == depth:
        sum_MN = torch.zeros(num_rows, num_columns, device=a_MK.device)
        for at in _blocks(depth, max(num_rows, num_columns)):
            sum_MN.addmm_(a_MK[:, at].float(), b_KN[at].float())
        return sum_MN.to(torch.bfloat16)
    result_MN = torch.empty(num_rows, num_columns, dtype=torch.bfloat16, device=a_MK.device)
    if longest == num_rows:
        wide_KN = b_KN.float()
        for at in _blocks(num_rows, depth):
            result_MN[at] = a_MK[at].float() @ wide_KN
    else:
        wide_MK = a_MK.float()
        for at in _blocks(num_columns, depth):
            result_MN[:, at] = wide_MK @ b_KN[:, at].float()
    return result_MN


def _with_bias(bias: Tensor, a_MK: Tensor, b_KN: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    # The bias before the one rounding; a matrix to add to is as large as the result anyway.
    return torch.addmm(bias.float(), a_MK.float(), b_KN.float(), beta=beta, alpha=alpha).to(torch.bfloat16)


def _batched(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.float(), b.float()).to(torch.bfloat16)


def _batched_with(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    wide = torch.baddbmm(start.float(), a.float(), b.float(), beta=beta, alpha=alpha)
    return wide.to(torch.bfloat16)


_aten = torch.ops.aten
_PRODUCTS: Mapping[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _product,
    _aten.mm.out: _product,
    _aten.addmm.default: _with_bias,
    _aten.addmm.out: _with_bias,
    _aten.addmm_.default: _with_bias,
    _aten.bmm.default: _batched,
    _aten.bmm.out: _batched,
    _aten.baddbmm.default: _batched_with,
    _aten.baddbmm.out: _batched_with,
    _aten.baddbmm_.default: _batched_with,
}
_IN_PLACE = (_aten.addmm_.default, _aten.baddbmm_.default)


class _Float32Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = _PRODUCTS.get(func)
        if product is None or not all(map(_low, args)):
            return func(*args, **kwargs)
        out = args[0] if func in _IN_PLACE else kwargs.pop("out", None)
        result = product(*args, **kwargs)
        return result if out is None else out.copy_(result)


def _low(operand: Tensor) -> bool:
    return operand.dtype == torch.bfloat16 and operand.device.type == "cpu"


def _computes_low(model: nn.Module, autocast: bool) -> bool:
    parameters = list(model.parameters())
    if any(parameter.device.type != "cpu" for parameter in parameters):
        return False
    autocast |= torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast or any(parameter.dtype == torch.bfloat16 for parameter in parameters)


@contextmanager
def float32_products() -> Iterator[None]:
    """Within, products in bfloat16 take the way that is fast on this processor: their own instructions, or
    float32's."""
    if _WITHIN.get() or not lacks_instructions():
        yield
        return
    token = _WITHIN.set(True)
    try:
        with _Float32Products():  # type: ignore[no-untyped-call]  # untyped in torch
            yield
    finally:
        _WITHIN.reset(token)


@contextmanager
def bfloat16_products(model: nn.Module, *, autocast: bool = False) -> Iterator[None]:
    """`float32_products` where the model computes in bfloat16 on the processor; nothing where it does not.

    Args:
        autocast: forwards within will be under autocast to bfloat16.
    """
    if _WITHIN.get() or not lacks_instructions() or not _computes_low(model, autocast):
        yield
        return
    _say_once()
    with float32_products():
        yield
