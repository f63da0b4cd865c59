"""Checks at the door of every objective: dtype, rank, shape, range.

Each error says what is wrong, the value seen and what was expected: TypeError for a wrong kind of value,
ValueError for a wrong value. Not here: any mathematics.
Checks of tensor values (ranges) wait for the device once per call; they are kept to small tensors.
"""

import math

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)


def full_precision(name: str, tensor: Tensor, *, ndim: int | None = None) -> Tensor:
    """Return the tensor in float32 or better: half precision is cast up, float64 is kept.

    Args:
        name: name used in the error.
        tensor: floating tensor of any shape.
        ndim: required number of axes; None accepts any.

    Returns:
        The tensor itself, or its float32 copy.

    Raises:
        TypeError: not a tensor, or not float16, bfloat16, float32 or float64.
        ValueError: wrong number of axes.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _HALF + _FULL:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if ndim is not None and tensor.ndim != ndim:
        axes = "1 axis" if ndim == 1 else f"{ndim} axes"
        raise ValueError(f"{name} must have {axes}, got {tensor.ndim}: shape {tuple(tensor.shape)}")
    return tensor.float() if tensor.dtype in _HALF else tensor


def same_shape(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise ValueError unless both tensors have one shape; nothing here broadcasts."""
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {tuple(like.shape)}, got {tuple(tensor.shape)}"
        )


def bool_mask(name: str, mask: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless the mask is a bool tensor with the shape of `like`."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool (True = counts), got {mask.dtype}; convert it with `!= 0`")
    same_shape(name, mask, like_name, like)


def mask_or_all(mask_BT: Tensor | None, like_name: str, like: Tensor) -> Tensor:
    """Return the checked mask, or for None one that counts every position of `like`."""
    if mask_BT is None:
        return torch.ones_like(like, dtype=torch.bool)
    bool_mask("mask_BT", mask_BT, like_name, like)
    return mask_BT


def constant(name: str, tensor: Tensor) -> None:
    """Raise ValueError if gradient could flow into a quantity that the objective treats as fixed."""
    if tensor.requires_grad:
        raise ValueError(
            f"{name} must not require grad: the objective treats it as a constant; "
            "compute it under torch.no_grad() or call .detach()"
        )


def all_between(name: str, tensor: Tensor, *, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless every element is finite and lies in [low, high]."""
    inside = torch.isfinite(tensor) & (tensor >= low) & (tensor <= high)
    if not bool(inside.all()):
        seen = tensor[~inside][0].item()
        raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}], got an element {seen:g}")


def number(
    name: str, value: float, *, low: float, high: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """Raise unless a Python number is finite and inside its interval.

    Args:
        name: name used in the error.
        value: the number.
        low: lower end, excluded when `above`.
        high: upper end, excluded when `below`.
        above: exclude `low`.
        below: exclude `high`.

    Raises:
        TypeError: not an int or float.
        ValueError: not finite, or outside the interval.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    low_ok = value > low if above else value >= low
    high_ok = value < high if below else value <= high
    if not (math.isfinite(value) and low_ok and high_ok):
        interval = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        raise ValueError(f"{name} must be finite and in {interval}, got {value}")
