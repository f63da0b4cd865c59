"""The last layer on the rows that are read: what a loss never looks at is not computed.

Every layer but the last needs all tokens, because later layers attend to them. Of the last one only the keys
and values of all tokens are needed; its queries, output projection and MLP only where a head reads the hidden
state: a seventh of a row for a reward model, the completions for a policy. The model stays unmodified: hooks
take the rows on the way into a part and put its result back in place, with zeros elsewhere.
Not here: which rows, and whether the model allows it (scoring tries it on the model at hand).
Axes: L tokens of the row, n rows that are read, X width of whatever a part takes or gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["last_layer", "last_layer_parts", "layers_of", "only_rows"]

# Parts whose result for a token depends on that token alone.
_PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def layers_of(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The backbone's layers in their order; none where they cannot be told."""
    num_layers = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    stacks = [m for m in backbone.children() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    return tuple(stacks[0]) if len(stacks) == 1 else ()


def last_layer(backbone: PreTrainedModel) -> nn.Module | None:
    """The backbone's last layer; None where it cannot be told."""
    layers = layers_of(backbone)
    return layers[-1] if layers else None


def last_layer_parts(backbone: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Parts of the backbone's last layer that work token by token; none where no part is known by name, and
    none of a layer that the backward computes again, when the hooks are gone."""
    layer = last_layer(backbone)
    if layer is None or getattr(layer, "gradient_checkpointing", False):
        return ()
    named = dict(layer.named_modules())
    return tuple(named[name] for name in _PARTS if name in named)


class _Rows(torch.autograd.Function):
    """Rows by distinct indices; the backward writes them into zeros."""

    @staticmethod
    def forward(ctx: Any, states_LX: Tensor, rows_n: Tensor) -> Tensor:
        ctx.rows_n, ctx.num_tokens = rows_n, states_LX.shape[0]
        return states_LX.index_select(0, rows_n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_nX,) = grads
        return _spread(grad_nX, ctx.rows_n, ctx.num_tokens), None


class _Spread(torch.autograd.Function):
    """Rows written into zeros; the backward takes them out again."""

    @staticmethod
    def forward(ctx: Any, states_nX: Tensor, rows_n: Tensor, num_tokens: int) -> Tensor:
        ctx.rows_n = rows_n
        return _spread(states_nX, rows_n, num_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_LX,) = grads
        return grad_LX.index_select(0, ctx.rows_n), None, None


def _spread(states_nX: Tensor, rows_n: Tensor, num_tokens: int) -> Tensor:
    return states_nX.new_zeros(num_tokens, states_nX.shape[1]).index_copy_(0, rows_n, states_nX)


@contextmanager
def only_rows(parts: tuple[nn.Module, ...], rows_n: Tensor, num_tokens: int) -> Iterator[None]:
    """Within, the parts compute the given rows of a packed row only; their results are 0 elsewhere.

    The backward may run after the end of it.

    Args:
        rows_n: distinct indices into the row, ascending, int64.
        num_tokens: L.
    """

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states_1LX, *rest = inputs
        taken: Tensor = _Rows.apply(states_1LX[0], rows_n)  # type: ignore[no-untyped-call]  # untyped in torch
        return (taken.unsqueeze(0), *rest)

    def put_back(module: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            result[0], rows_n, num_tokens
        )
        return spread.unsqueeze(0)

    handles = [part.register_forward_pre_hook(take) for part in parts]
    handles += [part.register_forward_hook(put_back) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
