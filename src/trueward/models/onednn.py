"""The order of a weight that oneDNN's products of few rows read fastest: making it, multiplying by it,
reading rows of it, and whether it can be trusted on this machine.

Not here: for how long a model's weights lie in it (see relaid).
"""

import ctypes
import math

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["DTYPES", "available", "bounds", "elements", "packed", "places", "product", "works"]

DTYPES = (torch.float32, torch.bfloat16)
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "data_ptr", "_nbytes")
# The order hardly depends on the rows it is asked for, except that one row gets another.
_ROWS = 64
# Shape and precision -> whether the other order gives the same products, and the same weight back.
_TRIED: dict[tuple[torch.Size, torch.dtype], bool] = {}
# Shape and precision -> where each row and each column lies, or None where rows cannot be read.
_PLACES: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor] | None] = {}
# Numbers up to this, and one more, are exact in every precision here.
_DIGIT = 128


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


def elements(laid: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of a copy in the other order, element by element; valid for as long as the copy is."""
    address, size = bounds(laid)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype)


def places(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where the elements of a weight of this shape lie in the other order.

    Returns:
        (rows_O, columns_I), so that element (o, i) is `elements(laid)[rows_O[o] + columns_I[i]]`; None where
        they do not lie so. Found out once, and checked on this weight.
    """
    key = (weight.shape, weight.dtype)
    if key not in _PLACES:
        _PLACES[key] = _find_places(weight)
    return _PLACES[key]


def _find_places(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    num_rows, num_columns = weight.shape
    marks = torch.zeros_like(weight)
    rows_O = _marked(marks, marks[:, 0], num_rows)
    columns_I = _marked(marks, marks[0], num_columns)
    if rows_O is None or columns_I is None:
        return None
    columns_I = columns_I - columns_I[0]
    laid = packed(weight)
    found = elements(laid, weight.dtype)
    for some, rows_o in zip(torch.split(weight, _DIGIT), torch.split(rows_O, _DIGIT), strict=True):
        at = rows_o.unsqueeze(1) + columns_I
        if int(at.min()) < 0 or int(at.max()) >= len(found) or not torch.equal(found[at], some):
            return None
    return rows_O, columns_I


def _marked(marks: Tensor, line: Tensor, count: int) -> Tensor | None:
    """Where the elements of one row or column, a view into `marks`, lie: each is marked by two digits."""
    if count > _DIGIT**2:
        return None
    numbers = torch.arange(count)
    at, number = torch.empty(0), torch.zeros(count, dtype=torch.long)
    for digit, weight in ((numbers // _DIGIT, _DIGIT), (numbers % _DIGIT, 1)):
        line.copy_(digit + 1)
        laid = packed(marks)
        found = elements(laid, marks.dtype)
        at = found.nonzero().squeeze(1)
        if len(at) != count:
            return None
        number += weight * (found[at].long() - 1)
    line.zero_()
    return at[number.argsort()]
