"""The order of a weight that oneDNN's products of few rows read fastest: moving a weight into it and back,
multiplying by it, where its elements lie, and whether all that can be trusted on this machine.

In that order a weight of most models is as large as before, so that it can lie where it lay (`moved`): torch
is told, in the way its compiled models tell it of their constants, that the memory of a tensor holds another
order.

Not here: for how long a model's weights lie in it (see relaid).
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["DTYPES", "available", "copied", "move_back", "moved", "places", "product", "works"]

DTYPES = (torch.float32, torch.bfloat16)
_OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "data_ptr",
    "_nbytes",
    "_get_mkldnn_serialized_md",
)
# The order hardly depends on the rows it is asked for, except that one row gets another.
_ROWS = 64
# Shape and precision -> whether the other order gives the same products, and the same weight back.
_TRIED: dict[tuple[torch.Size, torch.dtype], bool] = {}
# Shape and precision -> where each row and each column lies, or None where rows cannot be read.
_PLACES: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor] | None] = {}
# Numbers up to this, and one more, are exact in every precision here.
_DIGIT = 128
# How Python hands over an address. With a signature of its own: `ctypes.pythonapi` is everybody's.
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


@cache
def _library() -> ctypes.CDLL | None:
    """torch's own library with the functions that make a tensor of memory that is there, if it has them."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.is_file() or not hasattr(torch._C, "_aoti"):
        return None
    library = ctypes.CDLL(str(path))
    names = (
        "create_tensor_from_blob_v2",
        "layout__mkldnn",
        "device_type_cpu",
        "dtype_float32",
        "dtype_bfloat16",
    )
    return library if all(hasattr(library, f"aoti_torch_{name}") for name in names) else None


def available(dtype: torch.dtype) -> bool:
    """Whether this build and processor have it for a precision."""
    ops = torch.ops.mkldnn
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
    if not built or torch.is_autocast_enabled("cpu"):
        return False
    if not all(hasattr(ops, name) for name in _OPERATORS) or _library() is None:
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


def copied(weight: Tensor) -> Tensor:
    """A copy in the other order; `to_dense()` gives the weight back."""
    laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return laid


def moved(weight: Tensor) -> Tensor:
    """Put a contiguous weight into the other order, where it lies. Only for one that `works`.

    Returns:
        What products take. It has no memory of its own: the weight must outlive it.

    Raises:
        RuntimeError: torch makes no tensor of that memory; the weight is as it was.
    """
    laid = copied(weight)
    within = _within(weight, laid)
    ctypes.memmove(weight.data_ptr(), torch.ops.mkldnn.data_ptr(laid), weight.nbytes)
    return within


def move_back(weight: Tensor, laid: Tensor) -> None:
    """Undo `moved`: bit by bit as it was."""
    weight.copy_(laid.to_dense())


def _within(weight: Tensor, laid: Tensor) -> Tensor:
    """A tensor of the shape and order of `laid` whose memory is that of `weight`."""
    library = _library()
    assert library is not None
    order = torch.ops.mkldnn._get_mkldnn_serialized_md(laid)
    axes = ctypes.c_int64 * weight.dim()
    dtype = getattr(library, f"aoti_torch_dtype_{str(weight.dtype).removeprefix('torch.')}")
    handle = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_int64(weight.dim()),
        axes(*weight.shape),
        axes(*weight.stride()),
        ctypes.c_int64(0),
        dtype(),
        library.aoti_torch_device_type_cpu(),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        ctypes.c_void_p(order.data_ptr()),
        ctypes.c_int64(order.numel()),
    )
    if failed:
        raise RuntimeError(f"torch made no tensor of a weight's memory (error {failed})")
    # The tensor takes the handle over, and frees it.
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(handle, None, None))


def product(rows: Tensor, laid: Tensor, bias: Tensor | None) -> Tensor:
    """`rows weight^T + bias`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, laid, bias, "none", [], "")
    return result


def works(weight: Tensor) -> bool:
    """Whether weights of this shape can be moved, and serve in the other order; tried once, on this one.

    A weight whose outputs are no multiple of 64, or inputs of 16 (bfloat16: 32), is larger in it, and stays.
    """
    key = (weight.shape, weight.dtype)
    if key not in _TRIED:
        _TRIED[key] = torch.ops.mkldnn._nbytes(copied(weight)) == weight.nbytes and _serves(weight)
    return _TRIED[key]


def _serves(weight: Tensor) -> bool:
    rows = torch.linspace(-1, 1, 3 * weight.shape[1]).view(3, -1).to(weight.dtype)
    expected = linear(rows, weight).float()
    other = weight.clone()
    laid = moved(other)
    got = product(rows, laid, None).float()
    move_back(other, laid)
    # Sums of so many terms in another order, each rounded to the precision.
    scale = float(linear(rows.abs(), weight.abs()).float().max())
    bound = scale * torch.finfo(weight.dtype).eps * (2 + math.sqrt(weight.shape[1]))
    return torch.equal(other, weight) and bool(((got - expected).abs() <= bound).all())


def places(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where the elements of a weight of this shape lie once it is moved.

    Returns:
        (rows_O, columns_I), so that element (o, i) is number rows_O[o] + columns_I[i] of its memory; None
        where they do not lie so. Found out once, and checked on this weight, which `works`.
    """
    key = (weight.shape, weight.dtype)
    if key not in _PLACES:
        _PLACES[key] = _find_places(weight)
    return _PLACES[key]


def _moved_memory(weight: Tensor) -> Tensor:
    """The memory of a moved copy, element by element."""
    other = weight.clone()
    moved(other)
    return other.flatten()


def _find_places(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    num_rows, num_columns = weight.shape
    marks = torch.zeros_like(weight)
    rows_O = _marked(marks, marks[:, 0], num_rows)
    columns_I = _marked(marks, marks[0], num_columns)
    if rows_O is None or columns_I is None:
        return None
    columns_I = columns_I - columns_I[0]
    found = _moved_memory(weight)
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
        found = _moved_memory(marks)
        at = found.nonzero().squeeze(1)
        if len(at) != count:
            return None
        number += weight * (found[at].long() - 1)
    line.zero_()
    return at[number.argsort()]
