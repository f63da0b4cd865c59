"""Attention over a packed row on a GPU: flex-attention under a block mask made from the row's segments.

What a token sees is what `attention.Plan` lets it see: its prompt and itself, within the sliding window. In
the row that is at most two intervals of keys, so three integers a token say all; blocks of 128 x 128 cells
that nobody sees are never computed. Not here: which of the two ways a forward takes (see routes).
Axes: L tokens of the row, P slots (L padded to whole blocks), n blocks of the row, H heads, d head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from trueward.models.attention import Segment, Unsupported

__all__ = [
    "BLOCK",
    "FlexKernel",
    "FlexPlan",
    "allow_compilations",
    "build_flex_plan",
    "compile_kernel",
    "compiled_kernel",
    "num_blocks",
]

BLOCK = 128
# Compilations of one function that torch allows before it gives up (8 by default). One is needed for each
# combination of heads, precision and gradient; policy, reference and reward model are three models.
_COMPILATIONS = 64

FlexKernel = Callable[..., Tensor]
"""`flex_attention`, or it compiled."""

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Cells = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


class View(NamedTuple):
    """Keys a query of the row sees: `own .. itself` and `first .. stop - 1` (of its prompt; none where first
    >= stop)."""

    own_P: Ints
    first_P: Ints
    stop_P: Ints


@cache
def compiled_kernel() -> FlexKernel:
    """flex-attention, compiled for whatever lengths come."""
    return compile_kernel()


def allow_compilations() -> None:
    """Let torch compile one function for all the models of a run."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _COMPILATIONS)


def compile_kernel(backend: str = "inductor") -> FlexKernel:
    """flex-attention under a compiler of torch. `fullgraph`: one that cannot be compiled raises; without it
    torch would run the dense one, which holds L x L scores."""
    allow_compilations()
    kernel: FlexKernel = torch.compile(flex_attention, backend=backend, dynamic=True, fullgraph=True)
    return kernel


def num_blocks(num_tokens: int) -> int:
    """Blocks of a row: few different counts (four an octave above 8), because torch may compile for each; at
    least two, because it compiles sizes of 1 apart."""
    blocks = max(2, -(-num_tokens // BLOCK))
    step = 1 << max(0, blocks.bit_length() - 3)
    return -(-blocks // step) * step


@dataclass(frozen=True, kw_only=True, slots=True)
class FlexPlan:
    """The attention of one row; made by `build_flex_plan`.

    slots: P.
    view: without a window.
    longest: keys of the segment with most keys.
    compiled: the layers around the attention are compiled too, where they can be (see compiled).
    """

    slots: int
    view: View
    longest: int
    device: torch.device
    kernel: FlexKernel
    compiled: bool = False
    masks: dict[int | None, BlockMask] = field(default_factory=dict)

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

        Raises:
            Unsupported: attention weights are dropped.
        """
        if dropout > 0:
            raise Unsupported("flex-attention has no dropout of attention weights")
        slots = self.slots
        usual = query.shape[-1] ** -0.5
        if scaling is not None and abs(scaling - usual) > 1e-9 * usual:
            # Into the query: a scale handed to a kernel of dynamic sizes is no constant in it.
            query = query * (scaling / usual)
        q, k, v = (_to_slots(_lowered(states), slots) for states in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        if groups > 1 and torch.is_grad_enabled():
            # The backward of shared heads is one program a shared head and block, too few to fill a GPU.
            k, v = (_each_head(states, groups) for states in (k, v))
        out = self.kernel(q, k, v, block_mask=self.mask(window), enable_gqa=q.shape[1] != k.shape[1])
        return out[:, :, : query.shape[2]].transpose(1, 2)

    def mask(self, window: int | None) -> BlockMask:
        """Block mask of the layers with this window, made once."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self.masks:
            self.masks[window] = _block_mask(_within(self.view, window), self.device)
        return self.masks[window]


def _lowered(states: Tensor) -> Tensor:
    """In the precision of products under autocast, as SDPA does: rotary embeddings leave float32 behind."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


def _each_head(states: Tensor, groups: int) -> Tensor:
    """Keys or values [1, heads, P, d] once for each head of queries that reads them."""
    rows = states.transpose(1, 2).unsqueeze(3).expand(-1, -1, -1, groups, -1)
    return rows.flatten(2, 3).transpose(1, 2)


def _to_slots(states: Tensor, slots: int) -> Tensor:
    """Padded along the row, in the memory order that the projections wrote: [1, L, heads, d]."""
    missing = slots - states.shape[2]
    if missing == 0:
        return states
    return pad(states.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2)


def _within(view: View, window: int | None) -> View:
    """The view of layers that see no further back than `window` tokens, the token itself included."""
    if window is None:
        return view
    token_P = np.arange(len(view.own_P))
    # A token that is the i-th of its completion stands prompt + i tokens behind the start of the prompt.
    back_P = view.stop_P + (token_P - view.own_P)
    return View(
        np.maximum(view.own_P, token_P - window + 1),
        np.maximum(view.first_P, back_P - window + 1),
        view.stop_P,
    )


def _cells(view: View) -> tuple[Cells, Cells]:
    """Blocks of which some cells are seen, and blocks of which all are: partial_nn, whole_nn (query, key)."""
    slots = len(view.own_P)
    n = slots // BLOCK
    token_P = np.arange(slots)
    # Differences along the keys, summed up below: how many queries of a block see some, or all, of a block.
    some, all_of = np.zeros((n, n + 1), np.int64), np.zeros((n, n + 1), np.int64)
    for low_P, stop_P in ((view.own_P, token_P + 1), (view.first_P, view.stop_P)):
        sees = stop_P > low_P
        row, low, stop = token_P[sees] // BLOCK, low_P[sees], stop_P[sees]
        some += _counts(row, low // BLOCK, n) - _counts(row, (stop - 1) // BLOCK + 1, n)
        first, last = -(-low // BLOCK), stop // BLOCK
        covers = last > first
        all_of += _counts(row[covers], first[covers], n) - _counts(row[covers], last[covers], n)
    whole_nn = all_of.cumsum(1)[:, :n] == BLOCK
    return (some.cumsum(1)[:, :n] > 0) & ~whole_nn, whole_nn


def _counts(row: Ints, column: Ints, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """How often each cell of n x (n + 1) is named."""
    return np.bincount(row * (n + 1) + column, minlength=n * (n + 1)).reshape(n, n + 1)


def _block_mask(view: View, device: torch.device) -> BlockMask:
    """The mask, and what the backward reads of it: for a block of keys, the blocks of queries that see it."""
    partial_nn, whole_nn = _cells(view)
    ways = (partial_nn, whole_nn, partial_nn.T, whole_nn.T)
    # Each a tensor of its own: a compiler would take where a part of a larger one starts for a size.
    own_P, first_P, stop_P, *blocks = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (
            *(values.astype(np.int32) for values in view),
            *(array for cells_nn in ways for array in _ordered(cells_nn)),
        )
    )

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= own_P[query]) & (key <= query)
        return own | ((key >= first_P[query]) & (key < stop_P[query]))

    slots = len(view.own_P)
    kv_counts, kv, full_kv_counts, full_kv, q_counts, q, full_q_counts, full_q = blocks
    return BlockMask(
        seq_lengths=(slots, slots),
        kv_num_blocks=kv_counts,
        kv_indices=kv,
        full_kv_num_blocks=full_kv_counts,
        full_kv_indices=full_kv,
        q_num_blocks=q_counts,
        q_indices=q,
        full_q_num_blocks=full_q_counts,
        full_q_indices=full_q,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=seen,
    )


def _ordered(cells_nn: Cells) -> tuple[np.ndarray, np.ndarray]:
    """How many blocks of a row are needed, and which: those first, ascending."""
    counts_n = cells_nn.sum(1, dtype=np.int32)
    order_nn = np.argsort(~cells_nn, axis=1, kind="stable").astype(np.int32)
    return counts_n[None, None], order_nn[None, None]


def build_flex_plan(
    segments: Sequence[Segment],
    *,
    num_tokens: int,
    device: torch.device | str,
    kernel: FlexKernel | None = None,
    compiled: bool = False,
) -> FlexPlan:
    """Lay out the attention of one row.

    Args:
        segments: every token of the row is a query of exactly one segment, and a segment with a prefix
            shares keys that are queries of another.
        num_tokens: L, tokens of the row.
        device: where the row lives.
        kernel: None takes the compiled one.
        compiled: the layers are compiled too; the masks of their windows must be made before (`mask`).
    """
    slots = num_blocks(num_tokens) * BLOCK
    # Padding sees itself alone: a query without keys is nan in some kernels.
    own_P = np.arange(slots)
    first_P, stop_P = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    for segment in segments:
        at = slice(segment.start, segment.start + segment.length)
        own_P[at] = segment.start
        first_P[at] = segment.prefix_start
        stop_P[at] = segment.prefix_start + segment.prefix_length
    return FlexPlan(
        slots=slots,
        view=View(own_P, first_P, stop_P),
        longest=max(s.length + s.prefix_length for s in segments),
        device=torch.device(device),
        kernel=kernel or compiled_kernel(),
        compiled=compiled,
    )
