"""The order of a weight that oneDNN's products of few rows read fastest: making it, multiplying by it, and
whether it can be trusted on this machine.

Not here: for how long a model's weights lie in it (see relaid).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["DTYPES", "available", "bounds", "packed", "product", "works"]

DTYPES = (torch.float32, torch.bfloat16)
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "data_ptr", "_nbytes")
# The order hardly depends on the rows it is asked for, except that one row gets another.
_ROWS = 64
# Shape and precision -> whether the other order gives the same products, and the same weight back.
_TRIED: dict[tuple[torch.Size, torch.dtype], bool] = {}


def available(dtype: torch.dtype) -> bool:
    """Whether this build and processor have it for a precision."""
    ops = torch.ops.mkldnn
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
    if not built or torch.is_autocast_enabled("cpu"):
        return False
    if not all(hasattr(ops, name) for name in _OPERATORS):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


def packed(weight: Tensor) -> Tensor:
    """A copy in the other order; `to_dense()` gives the weight back."""
    laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return laid


def product(rows: Tensor, laid: Tensor, bias: Tensor | None) -> Tensor:
    """`rows weight^T + bias`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, laid, bias, "none", [], "")
    return result


def bounds(laid: Tensor) -> tuple[int, int]:
    """Address and bytes of a copy in the other order."""
    ops = torch.ops.mkldnn
    return ops.data_ptr(laid), ops._nbytes(laid)


def works(weight: Tensor) -> bool:
    """Whether the other order serves weights of this shape; tried once, on this one."""
    key = (weight.shape, weight.dtype)
    if key not in _TRIED:
        laid = packed(weight)
        rows = torch.linspace(-1, 1, 3 * weight.shape[1]).view(3, -1).to(weight.dtype)
        expected, got = linear(rows, weight).float(), product(rows, laid, None).float()
        # Sums of so many terms in another order, each rounded to the precision.
        scale = float(linear(rows.abs(), weight.abs()).float().max())
        bound = scale * torch.finfo(weight.dtype).eps * (2 + math.sqrt(weight.shape[1]))
        _TRIED[key] = torch.equal(laid.to_dense(), weight) and bool(((got - expected).abs() <= bound).all())
    return _TRIED[key]
