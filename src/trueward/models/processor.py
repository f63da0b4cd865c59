"""Which library multiplies in float32 on this processor.

torch asks Intel's MKL, which on processors of another maker does not use AVX-512: on an AMD EPYC of 2024 a
core then makes 115 GFLOP/s of its 275. oneDNN, which torch brings along and asks in bfloat16, does use it.
torch hands it float32 products where it is allowed to round their operands to bfloat16; it never does so
on a processor without AMX, whose registers are the only ones it rounds for. That is not taken on trust:
products of numbers that bfloat16 does not hold are tried first.
Not here: for which models it is asked (see routes).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["bound_kernels", "multiplied_by_onednn", "multiply_by_onednn", "pays"]

_UNSET, _ASKED = "none", "bf16"
# oneDNN makes a kernel for every shape of product, in a quarter of a millisecond, and keeps it, in half a
# MiB. Rows of ever other lengths have ever other shapes, which all layers share: 4 layers of 256 train a
# fifth faster by it, 2 layers of 64 take 2.4 times as long.
_LEAST = 4 * 256**2
# torch and oneDNN each keep the last 1024; a row of 1,024 tokens with its attention has some sixty.
_KERNELS = "128"
_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
# Odd numbers above 256 need nine bits, one more than bfloat16 has. 64 terms of 18 bits are exact in float32.
_LARGEST, _TERMS = 511, 64
_SHAPES = ((64, 64), (5, 512), (192, 352), (640, 96))


def bound_kernels() -> None:
    """Have oneDNN keep kernels of fewer shapes: 1024 of them take half a GiB. Whoever has set a variable
    decides; once something was multiplied by oneDNN in this process, it is too late."""
    for name in _CACHES:
        os.environ.setdefault(name, _KERNELS)


def pays(width: int, num_layers: int) -> bool:
    """Whether a model is large enough to win by `multiply_by_onednn`."""
    return width**2 * num_layers >= _LEAST


@contextmanager
def multiplied_by_onednn() -> Iterator[None]:
    """`multiply_by_onednn` within."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = setting.fp32_precision
    multiply_by_onednn()
    try:
        yield
    finally:
        setting.fp32_precision = before


def multiply_by_onednn() -> bool:
    """Have oneDNN multiply in float32 on a processor where that is faster, in this process from now on.

    The setting is `torch.backends.mkldnn.matmul.fp32_precision`; whoever has set it decides.

    Returns:
        Whether it does.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    if setting.fp32_precision == _UNSET and _half_used(_description(), _capability()):
        setting.fp32_precision = _ASKED
        if not all(torch.equal(got, expected) for got, expected in _trials()):
            setting.fp32_precision = _UNSET
    return str(setting.fp32_precision) == _ASKED


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
