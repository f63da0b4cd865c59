"""Weights in the order that a processor's matrix products of few rows read fastest, for as long as nothing
trains.

A product of a few rows waits for the weights, and a library that gets them row by row copies them into its
own order first, at every call. `laid_out` does it once for all products within. While a weight lies in the
other order the pages of its own storage are given back, and are filled again at the end, bit by bit as they
were. A weight that another module reads too (a head tied to the embeddings) is kept twice; one that is mapped
from a file (see `backend.own_memory`) stays as it is.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trueward.models.backend import forget_pages, forget_range

__all__ = ["laid_out"]

_DTYPES = (torch.float32, torch.bfloat16)
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "data_ptr", "_nbytes")
# The order hardly depends on the rows it is asked for, except that one row gets another.
_ROWS = 64
# Shape and precision -> whether the other order gives the same products, and the same weight back.
_TRIED: dict[tuple[torch.Size, torch.dtype], bool] = {}


class _Laid(NamedTuple):
    """A module whose weight lies in another order. dense: where its weight was; holds anything, unless that
    stays too."""

    module: nn.Linear
    dense: Tensor
    packed: Tensor
    emptied: bool


def _available(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
    if not built or torch.is_autocast_enabled("cpu"):
        return False
    if not all(hasattr(ops, name) for name in _OPERATORS):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


def _packed(weight: Tensor) -> Tensor:
    laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return laid


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return result


def _works(weight: Tensor) -> bool:
    """Whether the other order serves weights of this shape; tried once, on this one."""
    key = (weight.shape, weight.dtype)
    if key not in _TRIED:
        packed = _packed(weight)
        rows = torch.linspace(-1, 1, 3 * weight.shape[1]).view(3, -1).to(weight.dtype)
        expected, got = linear(rows, weight).float(), _product(rows, packed, None).float()
        # Sums of so many terms in another order, each rounded to the precision.
        scale = float(linear(rows.abs(), weight.abs()).float().max())
        bound = scale * torch.finfo(weight.dtype).eps * (2 + math.sqrt(weight.shape[1]))
        _TRIED[key] = torch.equal(packed.to_dense(), weight) and bool(((got - expected).abs() <= bound).all())
    return _TRIED[key]


def _lay(module: nn.Linear, *, shared: bool) -> _Laid:
    dense = module.weight.data
    packed = _packed(dense)
    if not shared:
        # The parameter has no elements meanwhile, so that who reads it fails instead of reading nothing.
        module.weight.data = dense.new_empty(0)
        forget_pages(dense)
    bias = module.bias

    def forward(rows: Tensor) -> Tensor:
        return _product(rows, packed, bias)

    module.forward = forward  # type: ignore[method-assign, assignment]  # of this one, meanwhile
    return _Laid(module, dense, packed, not shared)


def _put_back(laid: _Laid) -> None:
    if laid.emptied:
        laid.dense.copy_(laid.packed.to_dense())
        # Freed, but kept by the allocator: weights that come back would lie beside all of these.
        ops = torch.ops.mkldnn
        forget_range(ops.data_ptr(laid.packed), ops._nbytes(laid.packed))
        laid.module.weight.data = laid.dense
    del laid.module.forward


def _takes(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and whole


@contextmanager
def laid_out(model: nn.Module) -> Iterator[int]:
    """Within, linear layers of the model multiply by weights in the other order. Only without gradients.

    Nothing may read or change the weights meanwhile; they are bit-equal afterwards, in the same storage.

    Yields:
        How many linear layers had to stay as they are: their weights are mapped from a file.
    """
    mapped = 0
    laid: list[_Laid] = []
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    try:
        for module in model.modules():
            if not _takes(module) or not isinstance(module, nn.Linear):
                continue
            weight = module.weight
            if weight.dtype not in _DTYPES or not _available(weight.dtype) or not _works(weight.data):
                continue
            shared = uses[id(weight)] > 1
            if shared or weight.untyped_storage().resizable():
                laid.append(_lay(module, shared=shared))
            else:
                mapped += 1
        yield mapped
    finally:
        while laid:
            _put_back(laid.pop())
