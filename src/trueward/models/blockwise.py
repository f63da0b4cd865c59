"""Attention on a processor, block by block of queries, by products of matrices.

A block reads the keys up to its own last query and no more, so that half of a causal square is not computed;
heads that share keys are rows of one product. Nothing is kept for the backward but queries, keys and values:
it computes the probabilities again. torch's fused attention for processors takes a quarter to a half longer
in float32, from some two hundred tokens on; in bfloat16, where it gains nothing over float32, about twice as
long. In bfloat16, scores and their softmax are float32 here, and values and gradients are multiplied in
bfloat16, as on a GPU.
Axes: n segments, Q queries, K keys, H heads, G heads of keys, R heads that share one (H = G R), d head width;
B queries of a block, N = n G.

Source: the backward is that of Dao et al. 2022, "FlashAttention", appendix B.2 (dS = P o (dP - D)); blocks of
keys, and with them a softmax in pieces, are not needed at the lengths a processor trains.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trueward.models.bfloat16 import lacks_instructions

__all__ = ["Reach", "attend", "takes"]

# Queries of a block: fewer make more calls, more compute more of the half that is hidden.
_BLOCK, _LEAST_BLOCK = 96, 16
# Scores of a block, of all heads and segments; four tensors of this size are at work.
_SCORES = 1 << 21
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Reach(NamedTuple):
    """What the queries of a bucket see: query i all keys before `least + i`, none after `most + i`."""

    least: int
    most: int


def takes(query: Tensor, value: Tensor, *, dropout: float) -> bool:
    """Whether `attend` computes this; where not, torch's own attention does."""
    return query.device.type == "cpu" and value.dtype in _DTYPES and dropout == 0.0


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, reach: Reach, mask: Tensor | None
) -> Tensor:
    """softmax(scale q k^T + mask) v of each segment.

    Args:
        query: [n, Q, H, d]. key: [n, K, G, d]. value: [n, K, G, d], whose d may be another.
        mask: [n, 1, Q, K], 0 where a query sees a key, else -inf; None where `reach` says all, with `least`
            equal to `most`.

    Returns:
        [n, Q, H, d], in the precision of the values.
    """
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _Attend.apply(query, key, value, mask, scale, reach)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, reach: Reach
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale, ctx.reach = scale, reach
        work = _Work(query, key, value, mask, scale, reach)
        result = work.room(value.shape[-1], value.dtype)
        for block in work.blocks():
            p_NBK = work.probabilities(block)
            o_NBd = torch.bmm(p_NBK.to(work.low), work.v_NKd[:, : block.num_keys])
            result[:, block.start : block.end] = work.as_rows(o_NBd)
        return result.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            work = _Work(query, key, value, mask, ctx.scale, ctx.reach)
            return *_gradients(work, grads[0], query.dtype, value.dtype), None, None, None


def _gradients(work: "_Work", grad: Tensor, dtype: torch.dtype, value_dtype: torch.dtype) -> list[Tensor]:
    """Of queries, keys and values."""
    low, wide = work.low, work.wide
    g_NQd = _heads_together(grad, work.num_groups, low)
    q_NQd, k_NKd = work.q_NQd.to(low), work.k_NKd.to(low)
    dq = work.room(q_NQd.shape[-1], dtype)
    # Sums over blocks, in float32 whatever the products are in.
    dk_NKd, dv_NKd = (torch.zeros(each.shape, dtype=wide) for each in (k_NKd, work.v_NKd))
    for block in work.blocks():
        rows, num_keys = block.rows, block.num_keys
        p_NBK = work.probabilities(block)
        dp_NBK = torch.bmm(g_NQd[:, rows], work.v_NKd[:, :num_keys].transpose(1, 2)).to(wide)
        ds_NBK = torch.ops.aten._softmax_backward_data(dp_NBK, p_NBK, -1, wide).to(low)
        dq_NBd = torch.bmm(ds_NBK, k_NKd[:, :num_keys])
        torch.mul(work.as_rows(dq_NBd), work.scale, out=dq[:, block.start : block.end])
        dk_NKd[:, :num_keys] += torch.bmm(ds_NBK.transpose(1, 2), q_NQd[:, rows])
        dv_NKd[:, :num_keys] += torch.bmm(p_NBK.to(low).transpose(1, 2), g_NQd[:, rows])
    dk, dv = (
        torch.unflatten(sums, 0, (-1, work.num_groups)).transpose(1, 2).to(kind)
        for sums, kind in ((dk_NKd, dtype), (dv_NKd, value_dtype))
    )
    return [dq.flatten(2, 3), dk, dv]


class _Block(NamedTuple):
    """Queries `start .. end` of every segment; `rows` are theirs where heads lie together."""

    start: int
    end: int
    rows: slice
    num_keys: int


def _heads_together(states: Tensor, num_groups: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """[n, Q, H, d] -> [N, Q R, d], contiguous."""
    n, num_queries, num_heads, width = states.shape
    shared = num_heads // num_groups
    room = torch.empty(n, num_groups, num_queries, shared, width, dtype=dtype)
    split = torch.unflatten(states, 2, (num_groups, shared)).transpose(1, 2)
    if scale == 1.0:
        room.copy_(split)
    else:
        torch.mul(split.to(dtype), scale, out=room)
    return room.view(n * num_groups, num_queries * shared, width)


class _Work:
    """One call: operands as products take them, and its blocks."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, reach: Reach
    ) -> None:
        self.num_segments, self.num_queries, num_heads, _ = query.shape
        _, self.num_keys, self.num_groups, _ = key.shape
        self.shared = num_heads // self.num_groups
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        halved = value.dtype == torch.bfloat16 and not lacks_instructions()
        self.low = torch.bfloat16 if halved else self.wide
        self.q_NQd = _heads_together(query, self.num_groups, self.wide, scale)
        self.k_NKd = key.transpose(1, 2).flatten(0, 1).to(self.wide)
        self.v_NKd = value.transpose(1, 2).flatten(0, 1).to(self.low)
        self.mask, self.scale, self.reach = mask, scale, reach

    def blocks(self) -> Iterator[_Block]:
        fitting = _SCORES // (self.num_segments * self.num_groups * self.shared * self.num_keys)
        most = min(_BLOCK, max(_LEAST_BLOCK, fitting))
        # As even as can be: a block of a few queries costs nearly as many calls as a whole one.
        size = math.ceil(self.num_queries / math.ceil(self.num_queries / most))
        for start in range(0, self.num_queries, size):
            end = min(start + size, self.num_queries)
            rows = slice(start * self.shared, end * self.shared)
            yield _Block(start, end, rows, min(self.reach.most + end, self.num_keys))

    def probabilities(self, block: _Block) -> Tensor:
        """[N, B R, K up to the block's last]."""
        s_NBK = torch.bmm(self.q_NQd[:, block.rows], self.k_NKd[:, : block.num_keys].transpose(1, 2))
        # Keys before this one are seen by the whole block.
        seen = max(0, self.reach.least + block.start)
        if self.mask is None:
            num_queries = block.end - block.start
            hidden = _later(_BLOCK, self.wide)[:num_queries, : block.num_keys - seen].unsqueeze(1)
        else:
            hidden = self.mask[:, :, block.start : block.end, seen : block.num_keys].unsqueeze(3)
        self._heads_apart(s_NBK)[..., seen:] += hidden
        return torch.softmax(s_NBK, -1)

    def as_rows(self, states_NBd: Tensor) -> Tensor:
        """[N, B R, d] as [n, B, G, R, d], without a copy."""
        return self._heads_apart(states_NBd).transpose(1, 2)

    def room(self, width: int, dtype: torch.dtype) -> Tensor:
        """[n, Q, G, R, d] for the rows of all blocks."""
        shape = (self.num_segments, self.num_queries, self.num_groups, self.shared, width)
        return torch.empty(shape, dtype=dtype)

    def _heads_apart(self, states_NBx: Tensor) -> Tensor:
        """[N, B R, x] as [n, G, B, R, x]."""
        return states_NBx.view(self.num_segments, self.num_groups, -1, self.shared, states_NBx.shape[-1])


@cache
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """-inf where a key of a block comes after the query."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)
