"""One step of decoding through layers of the Llama kind, without what transformers puts around them.

With a few rows a step is made of very small operations, and half of its calls only pass arguments on. Here
the model's own modules (norms, projections, MLP, rotary embedding, adapters in place) are called one after
the other; only the rotation and the residuals are written out. Whether a model is of this kind is read off
the names of its parts, and then tried: see `decoding`.
Axes: R rows, D width, H heads, K key heads, d head width.
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

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query_RHd, key_RKd, value_RKd) -> [R, H, d]."""


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
    cos, sin = (part[0].unsqueeze(1) for part in backbone.rotary_emb(hidden_RD, position_R.unsqueeze(0)))
    half, num_rows = cos.shape[-1] // 2, len(ids_R)
    # (-x2, x1) * sin = (x2, x1) * (-sin1, sin2)
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for index, layer in enumerate(layers):
        attention = layer.attention
        normed_RD = layer.before_attention(hidden_RD)
        query = attention.q_proj(normed_RD).view(num_rows, -1, layer.width)
        key = attention.k_proj(normed_RD).view(num_rows, -1, layer.width)
        value = attention.v_proj(normed_RD).view(num_rows, -1, layer.width)
        if layer.head_norms:
            query, key = attention.q_norm(query), attention.k_norm(key)
        both = torch.cat([query, key], dim=1)
        both = torch.addcmul(both * cos, both.roll(half, -1), sin)
        query, key = torch.split(both, [query.shape[1], key.shape[1]], dim=1)
        attended = attend(index, query, key, value)
        hidden_RD = hidden_RD + attention.o_proj(attended.flatten(1))
        hidden_RD = hidden_RD + layer.mlp(layer.before_mlp(hidden_RD))
    normed: Tensor = backbone.norm(hidden_RD)
    return normed
