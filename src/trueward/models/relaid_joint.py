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
from trueward.models.backend import Vacated, forget_range

__all__ = ["JointLayers", "refill", "siblings", "vacate"]

# By the names that layers of the Llama kind have.
_NAMES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Beside a larger weight the fixed time does not show, and while it is made it is there twice.
_MOST_BYTES = 1 << 24


class JointLayers:
    """Layers that multiply as one until `put_back`."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._layers = layers
        self._sizes = [len(layer.weight) for layer in layers]
        self._packed = onednn.packed(torch.cat([layer.weight.data for layer in layers]))
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.data for bias in biases]) if biases else None
        # The last rows, and what layers have still to take of their result.
        self._rows: Tensor | None = None
        self._version = 0
        self._left: dict[int, Tensor] = {}
        self._vacated = [vacate(layer) for layer in layers]
        for index, layer in enumerate(layers):
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
        for layer, vacated, found_oI in zip(self._layers, self._vacated, parts, strict=True):
            refill(layer, vacated, found_oI)
            del layer.forward
        if not all(vacated.emptied for vacated in self._vacated):
            # Freed, but kept by the allocator: weights that come back would lie beside all of these.
            forget_range(*onednn.bounds(self._packed))


def vacate(layer: nn.Linear) -> Vacated:
    """Take the weight's memory. The parameter has no elements meanwhile, so that who reads it fails instead
    of reading nothing."""
    dense = layer.weight.data
    layer.weight.data = dense.new_empty(0)
    return Vacated(dense)


def refill(layer: nn.Linear, vacated: Vacated, values: Tensor) -> None:
    """Give the weight back."""
    layer.weight.data = vacated.fill(values)


def siblings(
    module: nn.Module, takes: Callable[[nn.Module], TypeGuard[nn.Linear]]
) -> Iterator[list[nn.Linear]]:
    """Children that read the same rows, and are small enough to gain by one product.

    takes: whether a child is a layer whose weight can be laid out.
    """
    children = dict(module.named_children())
    for names in _NAMES:
        if not set(names) <= set(children):
            continue
        layers = [children[name] for name in names]
        linears = [layer for layer in layers if takes(layer)]
        if len(linears) == len(layers) and _alike(linears):
            yield linears


def _alike(layers: list[nn.Linear]) -> bool:
    weights = [layer.weight for layer in layers]
    alike = len({(weight.shape[1], weight.dtype) for weight in weights}) == 1
    biased = {layer.bias is None for layer in layers}
    return alike and len(biased) == 1 and sum(weight.nbytes for weight in weights) <= _MOST_BYTES
