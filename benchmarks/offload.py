"""Activations on disk between forward and backward, tried against keeping them in memory.

A tensor that the backward needs is copied into a file that is mapped, and its pages are given back; the
backward reads them from the file.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trueward.models.backend import forget_pages

__all__ = ["on_disk"]

# Smaller tensors stay in memory.
_LEAST_BYTES = 1 << 20


class _OnDisk:
    """One file a tensor, removed when its graph is gone."""

    def __init__(self, tensor: Tensor, folder: Path) -> None:
        self._file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as the graph
        self._like = tensor.new_empty(0), tensor.shape
        mapped = self.read()
        mapped.copy_(tensor)
        forget_pages(mapped)

    def read(self) -> Tensor:
        like, shape = self._like
        flat = torch.from_file(self._file.name, shared=True, size=shape.numel(), dtype=like.dtype)
        return flat.view(shape)


@contextmanager
def on_disk(folder: Path, kept: Callable[[Tensor], bool]) -> Iterator[None]:
    """Within, what the backward needs goes to disk.

    kept: tensors that lie in memory anyway (weights, and what is made of them).
    """

    def pack(tensor: Tensor) -> Tensor | _OnDisk:
        small = tensor.nbytes < _LEAST_BYTES or not tensor.is_contiguous()
        return tensor if small or kept(tensor) else _OnDisk(tensor, folder)

    def unpack(packed: Tensor | _OnDisk) -> Tensor:
        return packed.read() if isinstance(packed, _OnDisk) else packed

    with saved_tensors_hooks(pack, unpack):
        yield
