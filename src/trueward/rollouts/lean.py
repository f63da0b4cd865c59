"""One step of decoding through layers of the Llama kind, without what transformers puts around them.

With a few rows a step is made of very small operations, and half of its calls only pass arguments on. Here
the model's own modules (norms, projections, MLP, rotary embedding, adapters in place) are called one after
the other; only the rotation and the residuals are written out. Whether a model is of this kind is read off
the names of its parts, and then tried: see `decoding`.
Axes: R rows, D width, H heads, K key heads, X = H + 2 K heads of a token, d head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LeanLayer", "lean_layers", "lean_step"]

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}

Attend = Callable[[int, Tensor], Tensor]
"""(layer, states_RXd: queries, keys, values) -> [R, H, d]."""


class LeanLayer(NamedTuple):
    """Parts of one layer; modules are the model's own."""

    before_attention: Callable[[Tensor], Tensor]
    attention: Any
    before_mlp: Callable[[Tensor], Tensor]
    mlp: nn.Module
    head_norms: bool
    width: int


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """The norm in one operation where it is an RMSNorm of Llama's in float32, else the module itself.

    In other precisions the module rounds between its operations, and texts are to be the model's own.
    """
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    alone = len(list(module.parameters())) == 1 and not _hooked(module)
    if weight is None or eps is None or weight.dtype != torch.float32 or not alone:
        return module  # type: ignore[no-any-return]
    return partial(torch.rms_norm, normalized_shape=tuple(weight.shape), weight=weight, eps=eps)


def lean_layers(backbone: Any) -> tuple[LeanLayer, ...] | None:
    """The layers, if every part has a name that is known here and nothing hangs on those that are passed
    over; None if not.
    """
    if _children(backbone) != _BACKBONE or _hooked(backbone):
        return None
    found = []
    for layer in backbone.layers:
        if _children(layer) != _LAYER or _hooked(layer) or _hooked(layer.self_attn):
            return None
        attention = layer.self_attn
        parts, width = _children(attention), getattr(attention, "head_dim", None)
        if parts not in (_PROJECTIONS, _PROJECTIONS | _HEAD_NORMS) or width is None:
            return None
        found.append(
            LeanLayer(
                _norm(layer.input_layernorm),
                attention,
                _norm(layer.post_attention_layernorm),
                layer.mlp,
                parts > _PROJECTIONS,
                width,
            )
        )
    return tuple(found)


def lean_step(
    backbone: Any,
    layers: tuple[LeanLayer, ...],
    ids_R: Tensor,
    position_R: Tensor,
    attend: Attend,
) -> Tensor:
    """hidden_RD after the last norm, of one token a row."""
    hidden_RD: Tensor = backbone.embed_tokens(ids_R)
    rotation = _Rotation(*backbone.rotary_emb(hidden_RD, position_R.unsqueeze(0)))
    num_rows = len(ids_R)
    for index, layer in enumerate(layers):
        attention = layer.attention
        normed_RD = layer.before_attention(hidden_RD)
        query = attention.q_proj(normed_RD).view(num_rows, -1, layer.width)
        key = attention.k_proj(normed_RD).view(num_rows, -1, layer.width)
        value = attention.v_proj(normed_RD).view(num_rows, -1, layer.width)
        if layer.head_norms:
            query, key = attention.q_norm(query), attention.k_norm(key)
        states_RXd = rotation.turn(torch.cat([query, key, value], dim=1), value.shape[1])
        attended = attend(index, states_RXd)
        hidden_RD = hidden_RD + attention.o_proj(attended.flatten(1))
        hidden_RD = hidden_RD + layer.mlp(layer.before_mlp(hidden_RD))
    normed: Tensor = backbone.norm(hidden_RD)
    return normed


class _Rotation:
    """The rotary embedding of one step, for all heads of a token at once: value heads are turned by nothing.

    (x1, x2) cos + (-x2, x1) sin, and (-x2, x1) sin = (x2, x1) (-sin1, sin2).
    """

    def __init__(self, cos_1Rd: Tensor, sin_1Rd: Tensor) -> None:
        self._half = cos_1Rd.shape[-1] // 2
        self._cos = cos_1Rd[0].unsqueeze(1)
        sin = sin_1Rd[0].unsqueeze(1)
        self._sin = torch.cat([-sin[..., : self._half], sin[..., self._half :]], dim=-1)
        # Of each number of heads and of value heads.
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def turn(self, states_RXd: Tensor, value_heads: int) -> Tensor:
        heads = states_RXd.shape[1]
        if (heads, value_heads) not in self._tables:
            cos_RXd = self._cos.repeat(1, heads, 1)
            sin_RXd = self._sin.repeat(1, heads, 1)
            cos_RXd[:, heads - value_heads :] = 1.0
            sin_RXd[:, heads - value_heads :] = 0.0
            self._tables[heads, value_heads] = cos_RXd, sin_RXd
        cos_RXd, sin_RXd = self._tables[heads, value_heads]
        return torch.addcmul(states_RXd * cos_RXd, states_RXd.roll(self._half, -1), sin_RXd)
