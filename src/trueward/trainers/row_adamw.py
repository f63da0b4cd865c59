"""AdamW over the rows of an embedding table that were ever looked up.

A row without a gradient so far has moments of 0, and an update of 0 / (0 + eps): nothing. So gradients and
moments are kept for the other rows only, and every weight gets bit for bit the update of plain AdamW. Weight
decay moves all rows, so with it gradients are whole. They are also whole where the table is the vocabulary
head too; its rows are then added to what the head has added before (`models.products.owner_of`).
Axes: V words, D width, r rows that had a gradient so far, u rows that have one now.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trueward.models.memory import TrainingMemory, zeros_apart

__all__ = ["RowAdamW", "gradient_values", "row_gradients"]


@contextmanager
def row_gradients(model: nn.Module, memory: TrainingMemory, *, weight_decay: float = 0.0) -> Iterator[None]:
    """Within, embedding tables that are nothing else, or the vocabulary head too, give autograd gradients of
    the rows that were looked up, and products add that of their weight in place, where `memory` has room.

    The first only on a processor: on a GPU finding distinct rows would wait for the device.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    tables = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and _takes_rows(module, owners[id(module.weight)], weight_decay)
    ]
    for table in tables:
        table.sparse = True
    try:
        with memory.used():
            yield
    finally:
        for table in tables:
            table.sparse = False


def _takes_rows(table: nn.Embedding, owners: Sequence[nn.Module], weight_decay: float) -> bool:
    others = [type(owner) for owner in owners if owner is not table]
    plain = not (table.sparse or table.scale_grad_by_freq or table.max_norm is not None)
    trained = table.weight.requires_grad and table.weight.device.type == "cpu"
    return plain and trained and (others == [nn.Linear] or (not others and not weight_decay))


def gradient_values(parameter: nn.Parameter) -> Tensor:
    """The numbers of a gradient, to be read or scaled in place: its rows, each once, where it has only some.

    Args:
        parameter: has a gradient.
    """
    grad = parameter.grad
    assert grad is not None, "asked of parameters with a gradient"
    if not grad.is_sparse:
        return grad
    if not grad.is_coalesced():
        grad = parameter.grad = grad.coalesce()
    return grad.values()


class RowAdamW(torch.optim.AdamW):
    """AdamW that takes gradients of rows as `row_gradients` makes them. Their state has `rows` beside the two
    moments, which hold those rows alone."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; see `torch.optim.AdamW.step`."""
        later: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not parameter.grad.is_sparse:
                    self._prepare(parameter)
                else:
                    gradient_values(parameter)
                    self._step_rows(parameter, group)
                    later.append((parameter, parameter.grad))
                    parameter.grad = None
        result = super().step(closure)
        for parameter, grad in later:
            parameter.grad = grad
        return result

    def _prepare(self, parameter: nn.Parameter) -> None:
        """Moments of all numbers of a parameter."""
        state = self.state[parameter]
        if state:
            _fill_in(state, len(parameter))
        else:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = zeros_apart(parameter), zeros_apart(parameter)

    def _step_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        grad_uD = parameter.grad
        assert grad_uD is not None
        state = self.state[parameter]
        at_u = self._make_room(state, grad_uD.indices()[0], parameter.shape[1], parameter)
        rows_r = state["rows"]
        weights_rD = parameter.index_select(0, rows_r)
        grad_rD = torch.zeros_like(weights_rD).index_copy_(0, at_u, grad_uD.values())
        beta1, beta2 = group["betas"]
        adamw(
            [weights_rD],
            [grad_rD],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.index_copy_(0, rows_r, weights_rD)

    @staticmethod
    def _make_room(state: dict[str, Tensor], rows_u: Tensor, width: int, like: Tensor) -> Tensor:
        """Give new rows moments of 0. Returns where the rows of the gradient are among all."""
        if state and "rows" not in state:
            # Of a checkpoint whose gradients had all rows.
            state["rows"] = torch.arange(len(state["exp_avg"]))
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["rows"] = rows_u[:0]
            state["exp_avg"] = state["exp_avg_sq"] = like.new_empty(0, width)
        before_r = state["rows"]
        rows_r = torch.unique(torch.cat([before_r, rows_u]))
        if len(rows_r) > len(before_r):
            at_r = torch.searchsorted(rows_r, before_r)
            for name in ("exp_avg", "exp_avg_sq"):
                grown_rD = like.new_zeros(len(rows_r), width)
                state[name] = grown_rD.index_copy_(0, at_r, state[name])
            state["rows"] = rows_r
        return torch.searchsorted(rows_r, rows_u)


def _fill_in(state: dict[str, Tensor], num_words: int) -> None:
    """Moments of all rows, where the gradient had only some before and has all now."""
    rows_r = state.pop("rows", None)
    if rows_r is not None:
        for name in ("exp_avg", "exp_avg_sq"):
            part_rD = state[name]
            whole_VD = part_rD.new_zeros(num_words, part_rD.shape[1])
            state[name] = whole_VD.index_copy_(0, rows_r, part_rD)
