"""Weights in the order that a processor's matrix products of few rows read fastest, for as long as nothing
trains.

A product of a few rows waits for the weights, and a library that gets them row by row copies them into its
own order first, at every call. `laid_out` does it once for all products within. While a weight lies in the
other order the pages of its own storage are given back, and are filled again at the end, bit by bit as they
were. So it is with a head that is the embedding table too (see relaid_table), and with layers
that read the same rows and become one product (see relaid_joint); a weight that other modules share is kept
twice, and one that is mapped from a file (see `backend.own_memory`) stays as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

from torch import Tensor, nn

from trueward.models import onednn
from trueward.models.backend import forget_pages, forget_range
from trueward.models.relaid_joint import lay_siblings
from trueward.models.relaid_table import LaidTable, takes_table

__all__ = ["laid_out"]


def _lay(module: nn.Linear, *, shared: bool) -> Callable[[], None]:
    """Returns what puts the weight back. A shared one is kept beside."""
    dense = module.weight.data
    packed = onednn.packed(dense)
    if not shared:
        # The parameter has no elements meanwhile, so that who reads it fails instead of reading nothing.
        module.weight.data = dense.new_empty(0)
        forget_pages(dense)
    bias = module.bias

    def forward(rows: Tensor) -> Tensor:
        return onednn.product(rows, packed, bias)

    def put_back() -> None:
        if not shared:
            dense.copy_(packed.to_dense())
            # Freed, but kept by the allocator: weights that come back would lie beside all of these.
            forget_range(*onednn.bounds(packed))
            module.weight.data = dense
        del module.forward

    module.forward = forward  # type: ignore[method-assign, assignment]  # of this one, meanwhile
    return put_back


def _takes(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain layer with a weight alone in its storage, in a precision that has the order."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and whole
    return plain and weight.dtype in onednn.DTYPES and onednn.available(weight.dtype)


@contextmanager
def laid_out(model: nn.Module) -> Iterator[int]:
    """Within, linear layers of the model multiply by weights in the other order. Only without gradients.

    Nothing may read or change the weights meanwhile; they are bit-equal afterwards, in the same storage.

    Yields:
        How many linear layers had to stay as they are: their weights are mapped from a file.
    """
    mapped = 0
    laid: list[Callable[[], None]] = []
    readers: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            readers.setdefault(id(parameter), []).append(module)

    def alone(module: nn.Module) -> TypeGuard[nn.Linear]:
        """Whether nothing but this layer needs its weight in the usual order."""
        if not _takes(module) or len(readers[id(module.weight)]) > 1:
            return False
        return module.weight.untyped_storage().resizable() and onednn.works(module.weight.data)

    try:
        for put_back in lay_siblings(model, alone):
            laid.append(put_back)
        for module in model.modules():
            if not _takes(module):
                continue
            weight = module.weight
            shared = len(readers[id(weight)]) > 1
            own = weight.untyped_storage().resizable()
            table = takes_table(module, readers[id(weight)]) if shared and own else None
            if table is not None:
                laid.append(LaidTable(module, table).put_back)
            elif not onednn.works(weight.data):
                continue
            elif shared or own:
                laid.append(_lay(module, shared=shared))
            else:
                mapped += 1
        yield mapped
    finally:
        while laid:
            laid.pop()()
