"""Weights in the order that a processor's matrix products of few rows read fastest, for as long as nothing
trains.

A product of a few rows waits for the weights, and a library that gets them row by row copies them into its
own order first, at every call. `laid_out` does it once for all products within: each weight is moved into the
other order where it lies, and back at the end, bit by bit as it was. So it is with a head that is the
embedding table too (see relaid_table). A weight that other modules share is kept twice; one that is mapped
from a file (see `backend.own_memory`) stays as it is, as does one that is larger in the other order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

from torch import Tensor, nn

from trueward.core.signals import uninterrupted
from trueward.models import onednn
from trueward.models.relaid_table import LaidTable, takes_table

__all__ = ["laid_out"]


def _multiply(module: nn.Linear, laid: Tensor) -> None:
    bias = module.bias

    def forward(rows: Tensor) -> Tensor:
        return onednn.product(rows, laid, bias)

    module.forward = forward  # type: ignore[method-assign, assignment]  # of this one, meanwhile


def _move(module: nn.Linear) -> Callable[[], None]:
    """Returns what moves the weight back."""
    dense = module.weight.data
    laid = onednn.moved(dense)
    # The parameter has no elements meanwhile, so that who reads it fails instead of reading another order.
    module.weight.data = dense.new_empty(0)
    _multiply(module, laid)

    def put_back() -> None:
        onednn.move_back(dense, laid)
        module.weight.data = dense
        del module.forward

    return put_back


def _copy(module: nn.Linear) -> Callable[[], None]:
    """The same with a copy beside the weight, which others read."""
    _multiply(module, onednn.copied(module.weight.data))

    def put_back() -> None:
        del module.forward

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
    try:
        for module in model.modules():
            if not _takes(module):
                continue
            weight = module.weight
            shared = len(readers[id(weight)]) > 1
            own = weight.untyped_storage().resizable()
            table = takes_table(module, readers[id(weight)]) if shared and own else None
            # A weight left in the other order would be wrong, and nobody would see it.
            with uninterrupted():
                if table is not None:
                    laid.append(LaidTable(module, table).put_back)
                elif not onednn.works(weight.data):
                    continue
                elif shared:
                    laid.append(_copy(module))
                elif own:
                    laid.append(_move(module))
                else:
                    mapped += 1
        yield mapped
    finally:
        with uninterrupted():
            while laid:
                laid.pop()()
