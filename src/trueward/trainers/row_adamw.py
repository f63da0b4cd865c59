"""AdamW over the rows of an embedding table that were ever looked up, with a first moment that may be kept
in sixteen bits.

A row without a gradient so far has moments of 0, and an update of 0 / (0 + eps): nothing. So gradients and
moments are kept for the other rows only, and every weight gets bit for bit the update of plain AdamW. Weight
decay moves all rows, so with it gradients are whole. They are also whole where the table is the vocabulary
head too; its rows are then added to what the head has added before (`models.products.owner_of`).
Axes: V words, D width, r rows that had a gradient so far, u rows that have one now.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trueward.models.memory import TrainingMemory, zeros_apart

# A block of a moment is turned into float32 and back in the processor's cache.
_BLOCK_ELEMENTS = 1 << 18

__all__ = ["RowAdamW", "gradient_values", "row_gradients"]


@contextmanager
def row_gradients(model: nn.Module, memory: TrainingMemory, *, weight_decay: float = 0.0) -> Iterator[None]:
    """Within, embedding tables that are nothing else, or the vocabulary head too, give autograd gradients of
    the rows that were looked up, and products add that of their weight in place, where `memory` has room.

    The first only on a processor: on a GPU finding distinct rows would wait for the device.
    """
    modules = list(model.modules())
    tables = [m for m in modules if isinstance(m, nn.Embedding) and m.weight.device.type == "cpu"]
    owners: dict[int, list[nn.Module]] = {}
    for module in modules if tables else ():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    tables = [table for table in tables if _takes_rows(table, owners[id(table.weight)], weight_decay)]
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
    return (
        plain and table.weight.requires_grad and (others == [nn.Linear] or (not others and not weight_decay))
    )


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
    moments, which hold those rows alone.

    Args:
        params, lr, betas, eps: of `torch.optim.AdamW`.
        first_moment: in which the first moment of matrices is kept between steps: float32, or bfloat16,
            rounded to the nearest after each. A step changes it by a tenth (beta1 0.9), many times the
            0.4 % that bfloat16 can tell apart; the second, which a step changes by a thousandth, would stand
            still.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        first_moment: torch.dtype = torch.float32,
    ) -> None:
        # Fused is one pass over each tensor and no temporaries: 6 to 7 times as fast on a processor.
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self._first_moment = first_moment

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
                    if self.state[parameter]["exp_avg"].dtype == parameter.dtype:
                        continue
                    self._step_rounded(parameter, group)
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
            state["exp_avg"] = zeros_apart(parameter, self._dtype_of(parameter))
            state["exp_avg_sq"] = zeros_apart(parameter)

    def _dtype_of(self, parameter: Tensor) -> torch.dtype:
        """Vectors are few numbers, and stay as they are; so do matrices that do not lie row by row."""
        whole = parameter.ndim >= 2 and parameter.is_contiguous()
        return self._first_moment if whole else parameter.dtype

    def _step_rounded(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """The update of a parameter whose first moment is kept in fewer bits, block by block."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        tensors = (parameter, grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        size = _BLOCK_ELEMENTS if parameter.device.type == "cpu" else parameter.numel()
        for weights, grads, kept, squares in zip(*(t.view(-1).split(size) for t in tensors), strict=True):
            moment = kept.to(parameter.dtype)
            # Each block counts for itself, so that all are of the same step.
            _adamw(group, weights, grads, moment, squares, state["step"].clone())
            kept.copy_(moment)
        state["step"] += 1

    def _step_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        grad_uD = parameter.grad
        assert grad_uD is not None
        state = self.state[parameter]
        at_u = self._make_room(state, grad_uD.indices()[0], parameter.shape[1], parameter)
        rows_r = state["rows"]
        weights_rD = parameter.index_select(0, rows_r)
        grad_rD = torch.zeros_like(weights_rD).index_copy_(0, at_u, grad_uD.values())
        moment_rD = state["exp_avg"].to(parameter.dtype)
        _adamw(group, weights_rD, grad_rD, moment_rD, state["exp_avg_sq"], state["step"])
        if moment_rD is not state["exp_avg"]:
            state["exp_avg"].copy_(moment_rD)
        parameter.index_copy_(0, rows_r, weights_rD)

    def _make_room(self, state: dict[str, Tensor], rows_u: Tensor, width: int, like: Tensor) -> Tensor:
        """Give new rows moments of 0. Returns where the rows of the gradient are among all."""
        if state and "rows" not in state:
            # Of a checkpoint whose gradients had all rows.
            state["rows"] = torch.arange(len(state["exp_avg"]))
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["rows"] = rows_u[:0]
            state["exp_avg"] = like.new_empty(0, width, dtype=self._dtype_of(like))
            state["exp_avg_sq"] = like.new_empty(0, width)
        before_r = state["rows"]
        rows_r = torch.unique(torch.cat([before_r, rows_u]))
        if len(rows_r) > len(before_r):
            at_r = torch.searchsorted(rows_r, before_r)
            for name in ("exp_avg", "exp_avg_sq"):
                grown_rD = state[name].new_zeros(len(rows_r), width)
                state[name] = grown_rD.index_copy_(0, at_r, state[name])
            state["rows"] = rows_r
        return torch.searchsorted(rows_r, rows_u)


def _adamw(
    group: dict[str, Any], weights: Tensor, grads: Tensor, moment: Tensor, squares: Tensor, step: Tensor
) -> None:
    """The update of one tensor, in place, as torch has it."""
    beta1, beta2 = group["betas"]
    adamw(
        [weights],
        [grads],
        [moment],
        [squares],
        [],
        [step],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _fill_in(state: dict[str, Tensor], num_words: int) -> None:
    """Moments of all rows, where the gradient had only some before and has all now."""
    rows_r = state.pop("rows", None)
    if rows_r is not None:
        for name in ("exp_avg", "exp_avg_sq"):
            part_rD = state[name]
            whole_VD = part_rD.new_zeros(num_words, part_rD.shape[1])
            state[name] = whole_VD.index_copy_(0, rows_r, part_rD)
