"""Memory of a training run apart from the heap: gradients and moments, and a stack of activations.

In the heap what lives long comes to lie among what comes and goes, and in the gaps between the next tensor
does not fit. Here what is kept for a backward lies on a stack, in the order of the forward, which the
backward frees from the top; gradients and moments have pages of their own, for the whole run. (The rest of
the same remedy: `cli.start`.)
On a processor only; elsewhere torch's own allocator does this.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from trueward.models.backend import forget_pages, forget_range, take_pages, take_range

__all__ = ["TrainingMemory", "current_memory", "zeros_apart"]

# Below this many bytes a tensor is as well off in the heap.
_LEAST_APART, _LEAST_KEPT = 1 << 20, 1 << 16
_LINE = 64
# Pages are counted when they are touched, not when the region is made (Linux: mman.h).
_MAP_NORESERVE = 0x4000


def zeros_apart(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of the shape and device of a tensor, and its type unless told otherwise, to be kept over many
    steps, in pages of their own."""
    dtype = dtype or like.dtype
    size = like.numel() * dtype.itemsize
    if like.device.type != "cpu" or size < _LEAST_APART or not sys.platform.startswith("linux"):
        return torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    made = torch.frombuffer(_pages(size), dtype=dtype).view(like.shape)
    take_pages(made)
    return made


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


class _Block(NamedTuple):
    """A part of the stack, in use as long as its buffer lives."""

    start: int
    buffer: "ref[ctypes.Array[ctypes.c_char]]"


class _Stack:
    """Tensors one above the other; what is freed is used again once nothing above it is in use."""

    def __init__(self, size: int) -> None:
        self._region = _pages(size)
        self._size, self._top, self._highest = size, 0, 0
        self._blocks: list[_Block] = []
        self._first = ctypes.addressof(ctypes.c_char.from_buffer(self._region))

    def holds(self, tensor: Tensor) -> bool:
        return self._first <= tensor.untyped_storage().data_ptr() < self._first + self._size

    def _drop(self) -> None:
        while self._blocks and self._blocks[-1].buffer() is None:
            self._top = self._blocks.pop().start

    def give_back(self) -> None:
        """Give back the pages above what is in use."""
        self._drop()
        forget_range(self._first + self._top, self._highest - self._top)
        self._highest = self._top

    def empty(self, num: int, dtype: torch.dtype) -> Tensor | None:
        """Room for `num` elements; None where the stack is full."""
        self._drop()
        size = num * dtype.itemsize
        start = self._top
        if start + size > self._size:
            return None
        buffer = (ctypes.c_char * size).from_buffer(self._region, start)
        self._blocks.append(_Block(start, ref(buffer)))
        self._top = start + -(-size // _LINE) * _LINE
        if self._top > self._highest:
            take_range(self._first + self._highest, self._top - self._highest)
            self._highest = self._top
        return torch.frombuffer(buffer, dtype=dtype)


class TrainingMemory:
    """Where the gradients of one training run lie, and what a forward keeps for its backward.

    A gradient is overwritten by that of the next step.
    """

    def __init__(self) -> None:
        self._gradients: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # Rooms without pages: the next step will fill them all.
        self._given_back: list[Tensor] = []
        self._stack: _Stack | None = None
        if sys.platform.startswith("linux"):
            try:
                self._stack = _Stack(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
            except OSError:
                # A limit on addresses; the heap does it, in more memory.
                self._stack = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within, it is `current_memory`."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def gradient_of(self, weight: nn.Parameter) -> Tensor:
        """Room for the gradient of a weight, holding anything: one for each, made when first asked for."""
        while self._given_back:
            take_pages(self._given_back.pop())
        room: Tensor | None = self._gradients.get(weight)  # type: ignore[no-untyped-call]  # untyped in torch
        if room is None:
            room = self._gradients[weight] = zeros_apart(weight.detach())
        return room

    def give_back(self) -> None:
        """Give back the pages of gradients that are cleared and of activations that are freed, before work of
        another kind that needs memory too. The next step takes them anew, which takes it half a second a GiB.
        """
        if self._stack is not None:
            self._stack.give_back()
        self._given_back = [
            room
            for weight, room in self._gradients.items()  # type: ignore[no-untyped-call]  # untyped in torch
            if weight.grad is None and room.device.type == "cpu"
        ]
        for room in self._given_back:
            forget_pages(room)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for a result that is kept for the backward."""
        num = torch.Size(shape).numel()
        room = None
        if self._stack is not None and device.type == "cpu" and num * dtype.itemsize >= _LEAST_KEPT:
            room = self._stack.empty(num, dtype)
        return torch.empty(shape, dtype=dtype, device=device) if room is None else room.view(shape)

    @contextmanager
    def keeping(self, weights: Iterable[Tensor]) -> Iterator[None]:
        """Within a forward, what autograd keeps for the backward is copied to the stack, so that the heap
        holds what comes and goes.

        Args:
            weights: stay where they are, as do small tensors.
        """
        stack = self._stack
        if stack is None:
            yield
            return
        stays = {weight.untyped_storage()._cdata for weight in weights}
        copies: dict[tuple[int, int, int, int], tuple[object, Tensor]] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            span = 1 + sum(
                (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
            )
            scattered = span > 2 * tensor.numel()
            if scattered or tensor.nbytes < _LEAST_KEPT or storage._cdata in stays or stack.holds(tensor):
                return tensor
            # The version: what is written in place between two uses is another value at the same address.
            key = storage._cdata, int(tensor.storage_offset()), span, tensor._version
            known = copies.get(key)
            # An address stays taken as long as a weak reference to it is held.
            if known is None:
                copy = stack.empty(span, tensor.dtype)
                if copy is None:
                    return tensor
                copy.copy_(tensor.as_strided((span,), (1,)))
                known = copies[key] = StorageWeakRef(storage), copy  # type: ignore[no-untyped-call]  # untyped in torch
            return known[1].as_strided(tensor.shape, tensor.stride(), 0)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


_CURRENT: ContextVar[TrainingMemory | None] = ContextVar("memory", default=None)


def current_memory() -> TrainingMemory | None:
    """The memory of the step that is being taken; None outside of one."""
    return _CURRENT.get()
