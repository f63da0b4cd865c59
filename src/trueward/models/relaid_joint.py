"""Small layers that read the same rows (queries, keys and values; gate and up), laid out as one weight.

A product of few rows costs a fixed time besides what its weight costs to read, and with a small weight that
is as much again. The first layer that gets some rows multiplies for all; the others, given the same rows,
take their part of the result. Not here: which order that is (see onednn), and what other layers do (see
relaid).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from trueward.models import onednn
from trueward.models.backend import forget_pages, forget_range

__all__ = ["JointLayers", "lay_siblings"]

# By the names that layers of the Llama kind have.
_NAMES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Beside a larger weight the fixed time does not show, and while it is made it is there twice.
_MOST_BYTES = 1 << 24


class JointLayers:
    """Layers that multiply as one until `put_back`."""

    def __init__(self, layers: list[nn.Linear], whole_OI: Tensor) -> None:
        """whole_OI: their weights, one after the other."""
        self._layers = layers
        self._sizes = [len(layer.weight) for layer in layers]
        self._packed = onednn.packed(whole_OI)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.data for bias in biases]) if biases else None
        # The last rows, and what layers have still to take of their result.
        self._rows: Tensor | None = None
        self._version = 0
        self._left: dict[int, Tensor] = {}
        self._dense = [layer.weight.data for layer in layers]
        for index, layer in enumerate(layers):
            # The parameter has no elements meanwhile, so that who reads it fails instead of reading nothing.
            layer.weight.data = whole_OI.new_empty(0)
            forget_pages(self._dense[index])
            layer.forward = partial(self._part, index)  # type: ignore[method-assign]  # of this one, meanwhile

    def _part(self, index: int, rows: Tensor) -> Tensor:
        """What one layer makes of `rows`."""
        version = 0 if rows.is_inference() else rows._version
        if rows is not self._rows or version != self._version or index not in self._left:
            whole = onednn.product(rows, self._packed, self._bias)
            self._rows, self._version = rows, version
            self._left = dict(enumerate(torch.split(whole, self._sizes, dim=-1)))
        part = self._left.pop(index)
        if not self._left:
            self._rows = None
        return part

    def put_back(self) -> None:
        """The weights, bit by bit, where they were."""
        parts = torch.split(self._packed.to_dense(), self._sizes)
        for layer, own_oI, found_oI in zip(self._layers, self._dense, parts, strict=True):
            own_oI.copy_(found_oI)
            layer.weight.data = own_oI
            del layer.forward
        # Freed, but kept by the allocator: weights that come back would lie beside all of these.
        forget_range(*onednn.bounds(self._packed))


def lay_siblings(
    model: nn.Module, takes: Callable[[nn.Module], TypeGuard[nn.Linear]]
) -> Iterator[Callable[[], None]]:
    """Lay out layers of a model that read the same rows, and are small enough to gain by one product.

    takes: whether a module is a layer whose weight can be laid out.

    Yields:
        What puts the weights of some layers back, as soon as these are laid out.
    """
    found = [layers for module in model.modules() for layers in _siblings(module, takes)]
    rooms: dict[torch.dtype, Tensor] = {}
    for layers in found:
        weight = layers[0].weight
        # One for all: the allocator would not find the place of the last one again.
        if weight.dtype not in rooms:
            rooms[weight.dtype] = weight.new_empty(_MOST_BYTES // weight.itemsize)
        whole_OI = rooms[weight.dtype][: sum(layer.weight.numel() for layer in layers)].view(
            -1, weight.shape[1]
        )
        torch.cat([layer.weight.data for layer in layers], out=whole_OI)
        if onednn.works(whole_OI):
            yield JointLayers(layers, whole_OI).put_back


def _siblings(
    module: nn.Module, takes: Callable[[nn.Module], TypeGuard[nn.Linear]]
) -> Iterator[list[nn.Linear]]:
    children = dict(module.named_children())
    for names in _NAMES:
        layers = [children[name] for name in names if name in children]
        linears = [layer for layer in layers if takes(layer)]
        if len(linears) == len(names) and _alike(linears):
            yield linears


def _alike(layers: list[nn.Linear]) -> bool:
    weights = [layer.weight for layer in layers]
    alike = len({(weight.shape[1], weight.dtype) for weight in weights}) == 1
    biased = {layer.bias is None for layer in layers}
    return alike and len(biased) == 1 and sum(weight.nbytes for weight in weights) <= _MOST_BYTES
