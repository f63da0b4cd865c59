"""Where models lie, and settings of the processor and its memory that decide speed, made before the first
forward.

Not here: the number of threads.
"""

import ctypes
import mmap
import os
import sys

import torch
from torch import Tensor, nn

from trueward.core.errors import ModelError

__all__ = [
    "bound_kernels",
    "choose_device",
    "forget_pages",
    "forget_range",
    "keep_freed_memory",
    "own_memory",
    "prepare_cpu",
    "take_pages",
    "take_range",
]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
# torch and oneDNN each keep the last 1024; a row of 1,024 tokens with its attention has some sixty.
_KERNELS = "128"
_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
# Of Linux's mman.h, since 5.14.
_MADV_POPULATE_WRITE = 23


def prepare_cpu() -> bool:
    """Treat denormal numbers as zero, keep freed memory, and bound what oneDNN keeps (`bound_kernels`).

    Adam's second moments reach denormals, and they cost a hundredfold. The number of threads is left alone:
    it belongs to the user (`OMP_NUM_THREADS`).

    Returns:
        Whether the processor can treat denormals as zero.
    """
    keep_freed_memory()
    bound_kernels()
    return torch.set_flush_denormal(True)


def choose_device(name: str) -> str:
    """The device a run uses.

    Args:
        name: `auto` (a GPU if torch sees one, else the processor), `cpu` or `cuda`.

    Raises:
        ModelError: `cuda` where torch sees no GPU.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ModelError(
            "torch sees no GPU here",
            value=f"torch {torch.__version__}",
            expected="a CUDA build of torch and a GPU that it supports",
            remedy="set model.device=cpu, or install another build of torch",
        )
    return "cpu" if name == "cpu" or not found else "cuda"


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the next step, instead of giving it back to the kernel.

    By default every tensor above 32 MiB is mapped anew and each of its pages faults when first touched,
    which takes longer than many operations on it. The same as the variables `MALLOC_MMAP_MAX_=0` and
    `MALLOC_TRIM_THRESHOLD_=2147483647`; whoever sets any of them decides, and nothing is changed.

    Returns:
        Whether it was set; False without glibc, and where the environment says something else.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def bound_kernels() -> None:
    """Have oneDNN keep kernels of fewer shapes: 1024 of them take half a GiB. Whoever has set a variable
    decides; once something was multiplied by oneDNN in this process, it is too late."""
    for name in _CACHES:
        os.environ.setdefault(name, _KERNELS)


def own_memory(model: nn.Module) -> None:
    """Give weights of a model that was just read, and still lie in the mapped file, memory of their own.

    There they begin at a cache line. In the file they begin where its header happens to end, which costs
    products in float32 up to a sixth of their speed; they are copied page by page when first trained; and
    `relaid` cannot lay them out. Each weight's pages of the file are given back as soon as it is copied, so
    memory grows by one weight.
    """
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
                mapped = tensor.data
                tensor.data = mapped.clone(memory_format=torch.contiguous_format)
                forget_pages(mapped)


def forget_pages(tensor: Tensor) -> None:
    """Give back the pages that hold nothing but this tensor, which then holds anything until it is written:
    whoever reads them again reads zeros, or the file that they are mapped from. Elsewhere than on Linux
    nothing happens."""
    if tensor.is_contiguous():
        forget_range(tensor.data_ptr(), tensor.nbytes)


def forget_range(address: int, size: int) -> None:
    """`forget_pages` of `size` bytes of this process from `address`."""
    if sys.platform.startswith("linux"):
        _advise(address, size, mmap.MADV_DONTNEED)


def take_pages(tensor: Tensor) -> None:
    """Have the kernel make the pages of a tensor that is about to be written for the first time, or after
    `forget_pages`. Pages that are made one by one as they are written take half as long again, and where two
    threads write side by side three times as long: each waits for the other. Elsewhere than on Linux, and
    before 5.14, nothing happens."""
    if tensor.is_contiguous():
        take_range(tensor.data_ptr(), tensor.nbytes)


def take_range(address: int, size: int) -> None:
    """`take_pages` of `size` bytes of this process from `address`."""
    if sys.platform.startswith("linux"):
        _advise(address, size, _MADV_POPULATE_WRITE)


def _advise(address: int, size: int, advice: int) -> None:
    """`madvise` for the whole pages of a range; what the kernel does not know, or cannot do, it leaves."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), advice)
