"""Attention over a packed row: segments of several sequences lie in one row and never see each other.

A row holds, group by group, a prompt and then its completions; a completion sees its prompt and itself. The
work is laid out once per row in a `Plan` (which tokens go into which padded bucket) and reused by every
layer. The function is registered with transformers as `trueward_packed`; a call that brings no plan is
handed to transformers' own SDPA attention, so a model that was switched stays an ordinary model.
Axes: L tokens of the row, n segments of a bucket, Q query slots, K key slots, H heads, d head width.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trueward.core.errors import ModelError
from trueward.models.blockwise import Reach, attend, takes
from trueward.models.memory import current_memory

__all__ = [
    "NAME",
    "AttentionStep",
    "Plan",
    "Segment",
    "Unsupported",
    "build_plan",
    "install",
    "takes_packed_rows",
]

NAME = "trueward_packed"
KEYWORD = "trueward_step"
# Arguments that change attention in ways this function does not compute.
_REFUSED = ("softcap", "s_aux", "position_bias", "cache")
# One more call costs about as much as this many query-key cells (measured on one core, 4 heads of 32).
_CALL_CELLS = 4096
_WASTE = 1.2


class Unsupported(ModelError):
    """The model asks its attention for something packed rows do not have; callers fall back to padding."""


class Segment(NamedTuple):
    """Queries `start .. start + length` of the row; their keys are `prefix_length` tokens from
    `prefix_start`, then themselves.
    """

    start: int
    length: int
    prefix_start: int
    prefix_length: int


class Bucket(NamedTuple):
    """Segments of similar length, attended to in one call. Slots past a segment's end are padding."""

    num_segments: int
    num_queries: int
    num_keys: int
    prefix_n1: Tensor
    last_n1: Tensor
    shared: bool
    reach: Reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Where each token of a row goes. Index tensors are int64.

    Query slots of all buckets follow each other; key slots too. A token has one query slot and one key slot
    of its own (`home`); a prompt that further completions share has more key slots (`extra`).
    """

    buckets: tuple[Bucket, ...]
    query_tokens: Tensor
    query_home: Tensor
    query_pads: Tensor
    key_tokens: Tensor
    key_home: Tensor
    extra_tokens: Tensor
    extra_slots: Tensor
    identity: bool
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        """Attention output [1, L, H, d] of one layer, from query [1, H, L, d] and key, value [1, heads, L,
        d].
        """
        query_sizes = [b.num_segments * b.num_queries for b in self.buckets]
        key_sizes = [b.num_segments * b.num_keys for b in self.buckets]
        # One split, not a slice per bucket: the backward of a slice fills the whole row with zeros.
        q_parts = torch.split(self._query_slots(query), query_sizes)
        k_parts = torch.split(self._key_slots(key), key_sizes)
        v_parts = torch.split(self._key_slots(value), key_sizes)
        outputs = [
            self._bucket(b, q, k, v, scaling=scaling, dropout=dropout, window=window)
            for b, (q, k, v) in enumerate(zip(q_parts, k_parts, v_parts, strict=True))
        ]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if not self.identity:
            joined = _take(joined, self.query_home, self.query_tokens, zero=self.query_pads)
        return joined.unsqueeze(0)

    def _query_slots(self, states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1)
        if self.identity:
            return rows
        return _take(rows, self.query_tokens, self.query_home)

    def _key_slots(self, states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1)
        if self.identity:
            return rows
        return _take(rows, self.key_tokens, self.key_home, extra=(self.extra_tokens, self.extra_slots))

    def _bucket(
        self,
        index: int,
        q_slots: Tensor,
        k_slots: Tensor,
        v_slots: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        bucket = self.buckets[index]
        q, k, v = (
            torch.unflatten(slots, 0, (bucket.num_segments, -1)) for slots in (q_slots, k_slots, v_slots)
        )
        if takes(q, v, dropout=dropout):
            rows = self._blockwise(index, q, k, v, scaling=scaling, window=window)
        else:
            rows = self._fused(index, q, k, v, scaling=scaling, dropout=dropout, window=window)
        return rows.flatten(0, 1)

    def _blockwise(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None, window: int | None
    ) -> Tensor:
        reach, mask = self.buckets[index].reach, None
        if window is not None and window < self.buckets[index].num_keys:
            # A window hides keys before those that come later.
            reach = reach._replace(least=-self.buckets[index].num_queries)
        if reach.least != reach.most:
            mask = self.mask(index, window, torch.promote_types(q.dtype, torch.float32))
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(q, k, v, scale=scale, reach=reach, mask=mask)

    def _fused(
        self,
        index: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        # On a processor bfloat16 buys nothing here: forward and backward take 1.2 to 2 times as long as in
        # float32, whose probabilities are not rounded. (Under autocast rotated queries and keys are float32.)
        wide = v.dtype == torch.bfloat16 and v.device.type == "cpu"
        dtype = v.dtype
        if wide:
            q, k, v = q.float(), k.float(), v.float()
        mask = self.mask(index, window, q.dtype)
        with torch.autocast("cpu", enabled=False) if wide else nullcontext():
            attended = scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q.shape[2] != k.shape[2],
            )
        rows = attended.transpose(1, 2)
        return rows.to(dtype) if wide else rows

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [n, 1, Q, K] of a bucket, made once; None where plain causality says the same."""
        bucket = self.buckets[index]
        if window is not None and window >= bucket.num_keys:
            window = None
        if not bucket.shared and window is None:
            return None
        if (index, window, dtype) not in self.masks:
            visible = _visible(bucket, window)
            blocked = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self.masks[index, window, dtype] = blocked.masked_fill_(~visible, float("-inf"))
        return self.masks[index, window, dtype]


def _visible(bucket: Bucket, window: int | None) -> Tensor:
    """Mask [n, 1, Q, K], True = seen. Positions decide, not slots."""
    device = bucket.prefix_n1.device
    # Padding queries repeat the last real position: a query that sees no key would turn into nan.
    steps = torch.minimum(torch.arange(bucket.num_queries, device=device), bucket.last_n1)
    distance = (bucket.prefix_n1 + steps).unsqueeze(-1) - torch.arange(bucket.num_keys, device=device)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    return visible.unsqueeze(1)


class _Take(torch.autograd.Function):
    """Rows by index, whose backward is again rows by index: much cheaper than the scatter of
    `index_select`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        index: Tensor,
        inverse: Tensor,
        zero: Tensor | None,
        extra_rows: Tensor | None,
        extra_slots: Tensor | None,
    ) -> Tensor:
        ctx.inverse, ctx.zero, ctx.extra_rows, ctx.extra_slots = inverse, zero, extra_rows, extra_slots
        memory = current_memory()
        if memory is None or not any(ctx.needs_input_grad):
            return rows.index_select(0, index)
        # Attention keeps what it is given.
        room = memory.empty((len(index), *rows.shape[1:]), rows.dtype, rows.device)
        return torch.index_select(rows, 0, index, out=room)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        result = grad.index_select(0, ctx.inverse)
        if ctx.zero is not None and len(ctx.zero):
            result.index_fill_(0, ctx.zero, 0.0)
        if ctx.extra_rows is not None and len(ctx.extra_rows):
            result.index_add_(0, ctx.extra_rows, grad.index_select(0, ctx.extra_slots))
        return result, None, None, None, None, None


def _take(
    rows: Tensor,
    index: Tensor,
    inverse: Tensor,
    *,
    zero: Tensor | None = None,
    extra: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`rows[index]`.

    Args:
        inverse: where in the result each row stands; its gradient is read there.
        zero: rows that are padding; their gradient is 0.
        extra: rows that stand in the result more than once, and where; those gradients are added.
    """
    extra_rows, extra_slots = extra or (None, None)
    taken: Tensor = _Take.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        rows, index, inverse, zero, extra_rows, extra_slots
    )
    return taken


def _buckets_of(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices of segments, put together where padding costs less than another call."""
    order = sorted(
        range(len(segments)),
        key=lambda i: (
            segments[i].prefix_length > 0,
            segments[i].length + segments[i].prefix_length,
            segments[i].length,
        ),
        reverse=True,
    )
    buckets: list[list[int]] = []
    cells = real = most_queries = most_keys = 0
    for i in order:
        segment = segments[i]
        keys = segment.length + segment.prefix_length
        area = segment.length * keys
        if buckets and (segment.prefix_length > 0) == (segments[buckets[-1][0]].prefix_length > 0):
            queries = max(most_queries, segment.length)
            padded = (len(buckets[-1]) + 1) * queries * most_keys
            # The bucket as it would become, against leaving it and starting another.
            if padded <= _WASTE * (real + area) or padded - cells - area <= _CALL_CELLS:
                buckets[-1].append(i)
                most_queries, cells, real = queries, padded, real + area
                continue
        buckets.append([i])
        most_queries, most_keys, cells, real = segment.length, keys, area, area
    return buckets


def build_plan(segments: Sequence[Segment], *, num_tokens: int, device: torch.device | str) -> Plan:
    """Lay out the attention of one row.

    Args:
        segments: every token of the row is a query of exactly one segment, and a segment with a prefix
            shares keys that are queries of another.
        num_tokens: L, tokens of the row.
        device: where the index tensors live.
    """
    query_tokens: list[int] = []
    key_tokens: list[int] = []
    query_pads: list[int] = []
    query_home, key_home = [0] * num_tokens, [0] * num_tokens
    extra_tokens: list[int] = []
    extra_slots: list[int] = []
    buckets: list[Bucket] = []
    for members in _buckets_of(segments):
        parts = [segments[i] for i in members]
        num_queries = max(s.length for s in parts)
        num_keys = max(s.length + s.prefix_length for s in parts)
        shared = parts[0].prefix_length > 0
        for s in parts:
            own = range(s.start, s.start + s.length)
            query_home[s.start : s.start + s.length] = range(len(query_tokens), len(query_tokens) + s.length)
            query_pads.extend(range(len(query_tokens) + s.length, len(query_tokens) + num_queries))
            query_tokens.extend([*own, *[s.start] * (num_queries - s.length)])
            first = len(key_tokens)
            extra_tokens.extend(range(s.prefix_start, s.prefix_start + s.prefix_length))
            extra_slots.extend(range(first, first + s.prefix_length))
            key_home[s.start : s.start + s.length] = range(
                first + s.prefix_length, first + s.prefix_length + s.length
            )
            key_tokens.extend(range(s.prefix_start, s.prefix_start + s.prefix_length))
            key_tokens.extend([*own, *[s.start] * (num_keys - s.length - s.prefix_length)])
        buckets.append(
            Bucket(
                len(parts),
                num_queries,
                num_keys,
                torch.tensor([[s.prefix_length] for s in parts], device=device),
                torch.tensor([[s.length - 1] for s in parts], device=device),
                shared,
                Reach(min(s.prefix_length for s in parts), max(s.prefix_length for s in parts)),
            )
        )

    def indices(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    in_order = list(range(num_tokens))
    return Plan(
        buckets=tuple(buckets),
        query_tokens=indices(query_tokens),
        query_home=indices(query_home),
        query_pads=indices(query_pads),
        key_tokens=indices(key_tokens),
        key_home=indices(key_home),
        extra_tokens=indices(extra_tokens),
        extra_slots=indices(extra_slots),
        identity=query_tokens == in_order and key_tokens == in_order,
    )


class AttentionStep(Protocol):
    """What a forward hands to its attention layers: a `Plan`, or a step of decoding that also keeps keys
    and values.
    """

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> Tensor: ...


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    step: AttentionStep | None = kwargs.pop(KEYWORD, None)
    if step is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return output
    asked = [name for name in _REFUSED if kwargs.get(name) is not None]
    if asked or getattr(module, "is_causal", True) is not True:
        raise Unsupported(
            f"{type(module).__name__} asks for {', '.join(asked) or 'attention to later tokens'}"
        )
    result = step.attend(
        module,
        query,
        key,
        value,
        scaling=kwargs.get("scaling"),
        dropout=kwargs.get("dropout", 0.0),
        window=kwargs.get("sliding_window"),
    )
    return result, None


AttentionInterface.register(NAME, _attention)
# The same masks as SDPA for calls without a plan; a call with one brings a ready 4D mask, which passes
# untouched.
AttentionMaskInterface.register(NAME, sdpa_mask)


def takes_packed_rows(model: PreTrainedModel) -> str | None:
    """Why the model cannot take packed rows, as far as its configuration tells; None if nothing speaks
    against it.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager", NAME):
        return f"its attention is {model.config._attn_implementation}"
    if not getattr(model, "_supports_attention_backend", False) and not getattr(
        model, "_supports_sdpa", False
    ):
        return f"{type(model).__name__} does not let its attention be replaced"
    for name in ("attn_logit_softcapping", "attention_chunk_size"):
        if getattr(config, name, None):
            return f"its configuration has {name}"
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", None):
        return "its attention is not causal"
    return None


def install(model: PreTrainedModel) -> None:
    """Switch the model's attention to `trueward_packed`.

    It stays switched: activation checkpointing runs layers again in the backward, long after any scope
    would have ended. Calls without a plan compute what SDPA computes.
    """
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
