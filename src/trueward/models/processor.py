"""Which library multiplies in float32 on this processor.

torch asks Intel's MKL, which on processors of another maker does not use AVX-512: on an AMD EPYC of 2024 a
core then makes 115 GFLOP/s of its 275. oneDNN, which torch brings along and asks in bfloat16, does use it.
torch hands it float32 products where it is allowed to round their operands to bfloat16; it never does so
on a processor without AMX, whose registers are the only ones it rounds for. That is not taken on trust:
products of numbers that bfloat16 does not hold are tried first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from trueward.core.errors import ModelError
from trueward.models.bfloat16 import bfloat16_products
from trueward.models.inner import unwrap

__all__ = ["model_products", "multiplied_by_mkl", "multiplied_by_onednn", "with_model_products"]

P = ParamSpec("P")
R = TypeVar("R")

_UNSET, _ASKED = "none", "bf16"
# oneDNN makes a kernel for every shape of product, in a quarter of a millisecond, and keeps it, in half a
# MiB. Rows of ever other lengths have ever other shapes, which all layers share: 4 layers of 256 train a
# fifth faster by it, 2 layers of 64 take 2.4 times as long.
_LEAST = 4 * 256**2
# Odd numbers above 256 need nine bits, one more than bfloat16 has. 64 terms of 18 bits are exact in float32.
_LARGEST, _TERMS = 511, 64
_SHAPES = ((64, 64), (5, 512), (192, 352), (640, 96))


@contextmanager
def model_products(model: nn.Module, *, autocast: bool = False) -> Iterator[None]:
    """Within, products of a model on the processor are computed in the way that is fast for it: in bfloat16
    (see there) and in float32. Which way follows from the model and the processor, not from what ran before.

    Args:
        autocast: forwards within will be under autocast to bfloat16.
    """
    with _library(_pays(model)), bfloat16_products(model, autocast=autocast):
        yield


def with_model_products(run: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is `model`, within `model_products` of it."""

    @wraps(run)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        model = args[0] if args else kwargs.get("model")
        # Whatever else was passed is for the function itself to refuse.
        with model_products(model) if isinstance(model, nn.Module) else nullcontext():
            return run(*args, **kwargs)

    return within


@contextmanager
def multiplied_by_onednn() -> Iterator[None]:
    """Within, oneDNN multiplies in float32 where that is faster for large products."""
    with _library(True):
        yield


@contextmanager
def multiplied_by_mkl() -> Iterator[None]:
    """Within, MKL multiplies in float32: small products, which take oneDNN longer to prepare than to make.
    Not those of weights: oneDNN makes them faster from a few rows on."""
    with _library(False):
        yield


_WITHIN: ContextVar[bool] = ContextVar("library of float32 products", default=False)


@contextmanager
def _library(large: bool) -> Iterator[None]:
    """oneDNN for large products, where it is faster, and MKL else. The setting is
    `torch.backends.mkldnn.matmul.fp32_precision`; whoever has set it decides."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = setting.fp32_precision
    if before != _UNSET and not _WITHIN.get():
        yield
        return
    token = _WITHIN.set(True)
    try:
        setting.fp32_precision = _ASKED if large and _usable() else _UNSET
        yield
    finally:
        setting.fp32_precision = before
        _WITHIN.reset(token)


def _pays(model: nn.Module) -> bool:
    """Whether a model lies on the processor and is large enough to win by oneDNN."""
    try:
        inner = unwrap(model)
    except ModelError:
        return False
    config = inner.config.get_text_config()
    return inner.device.type == "cpu" and config.hidden_size**2 * config.num_hidden_layers >= _LEAST


@cache
def _usable() -> bool:
    """Whether oneDNN is the faster library here, and multiplies exactly; tried once."""
    if not _half_used(_description(), _capability()):
        return False
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = setting.fp32_precision
    setting.fp32_precision = _ASKED
    try:
        # The first model may be asked under autocast, which rounds by itself.
        with torch.autocast("cpu", enabled=False):
            return all(torch.equal(got, expected) for got, expected in _trials())
    finally:
        setting.fp32_precision = before


def _description() -> str:
    """What the kernel says of the first core; nothing elsewhere than on Linux."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").partition("\n\n")[0] if path.is_file() else ""


def _capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _half_used(description: str, capability: str) -> bool:
    """Whether MKL leaves AVX-512 alone on such a core, and oneDNN cannot round."""
    lines = (line.partition(":") for line in description.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    amd = fields.get("vendor_id") == "AuthenticAMD"
    return amd and capability == "AVX512" and not any(flag.startswith("amx") for flag in flags)


def _trials() -> Iterator[tuple[Tensor, Tensor]]:
    """Products in float32, and what they are."""
    generator = torch.Generator().manual_seed(0)
    for num_rows, num_columns in _SHAPES:
        a, b = (
            torch.randint(-_LARGEST, _LARGEST + 1, (size, _TERMS), generator=generator)
            for size in (num_rows, num_columns)
        )
        exact, low_a, low_b = (a @ b.T).float(), a.float(), b.float()
        yield low_a @ low_b.T, exact
        yield torch.mm(low_a.T.contiguous().T, low_b.T.contiguous()), exact
        yield torch.bmm(low_a.expand(2, -1, -1), low_b.T.expand(2, -1, -1))[1], exact
        yield torch.addmm(exact, low_a, low_b.T), 2 * exact
