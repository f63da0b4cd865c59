"""Keys and values of the rows being decoded, in blocks of prompts of similar length.

A block is attended to in a few products, whatever its number of rows. `OwnRows` serves prompts with one row
each: what a row draws stands right behind its prompt. `SharedRows` serves prompts that several rows continue:
the prompt stands once, what each row draws beside it. Prompts stand at the right end of their block, so that
all its rows write their next token into the same slot. Products read whole blocks (in bfloat16 a part would
be copied first), so slots still empty are zero, and masked.
A new token comes as one tensor of its query, key and value heads, since with few rows each call costs as much
as what it computes.
Axes: L tokens of the packed row, P prompts of the block, R its rows, G rows of a prompt, H heads, K key
heads, g = H / K, X = H + 2 K heads of a token (queries, keys, values), T slots of prompts, S slots in all,
d head width; n = R K, c = 2 (keys, values).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Block", "OwnRows", "SharedRows", "cut_lengths"]

# Slots for drawn tokens are made so many at a time.
_ROOM = 32
# One more block costs about as much as reading so many bytes (measured on one core).
_BLOCK_BYTES = 1 << 18


class Block(Protocol):
    """Keys and values of consecutive rows, layer by layer."""

    num_rows: int

    def store(self, keys_LKd: Tensor, values_LKd: Tensor) -> None:
        """Keep the prompts' keys and values of one more layer, given those of the whole packed row."""
        ...

    def advance(self) -> None:
        """Make place for one more token in every row; comes before each step."""
        ...

    def attend(self, layer: int, states_RXd: Tensor, *, scaling: float, window: int | None) -> Tensor:
        """Keep key and value of the rows' new token. Returns what its queries attend to, [R, H, d]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these of its rows, ascending."""
        ...


def cut_lengths(lengths: Sequence[int], slot_bytes: int) -> list[int]:
    """Cut prompts into blocks, where padding would cost more than one more block.

    Args:
        lengths: tokens of each prompt; blocks are runs of neighbours, so sorted lengths give the fewest.
        slot_bytes: key and value of one token in one layer.

    Returns:
        Number of prompts of each block.
    """
    sizes: list[int] = []
    longest = total = 0
    for length in reversed(lengths):
        widest = max(longest, length)
        padding = widest * (sizes[-1] + 1) - total - length if sizes else 0
        if not sizes or padding * slot_bytes > _BLOCK_BYTES:
            sizes.append(1)
            longest = total = length
        else:
            sizes[-1] += 1
            longest, total = widest, total + length
    return sizes[::-1]


def _right_aligned(starts_P: Tensor, lengths_P: Tensor) -> Tensor:
    """tokens_PT: where in the packed row stands the token of each slot; padding reads the first."""
    longest = int(lengths_P.max())
    steps_T = torch.arange(longest, device=starts_P.device) - longest
    return starts_P.unsqueeze(1) + (steps_T + lengths_P.unsqueeze(1)).clamp_min(0)


def _pads(lengths_P: Tensor) -> Tensor:
    """Bool [P, T]: no token stands there."""
    steps_T = torch.arange(int(lengths_P.max()), device=lengths_P.device)
    return steps_T < lengths_P.max() - lengths_P.unsqueeze(1)


class _Masks:
    """Additive masks of one query a row, changed in place from step to step: one for each window, precision
    and number of heads that rows are repeated for."""

    def __init__(self, blocked: Tensor) -> None:
        """blocked: bool, rows first and slots last: what they do not see, windows aside."""
        self._blocked = blocked
        self._now = blocked.shape[-1] - 1
        self._made: dict[tuple[int | None, torch.dtype, int], Tensor] = {}

    def advance(self) -> None:
        """The query stands one slot further; its own slot, where it is one of these, is open from now on."""
        self._now += 1
        if self._now < self._blocked.shape[-1]:
            self._blocked[..., self._now] = False
        for (window, *_), mask in self._made.items():
            if self._now < mask.shape[-1]:
                mask[..., self._now] = 0.0
            if window is not None and 0 <= self._now - window < mask.shape[-1]:
                mask[..., self._now - window] = float("-inf")

    def of(self, window: int | None, dtype: torch.dtype, heads: int = 1) -> Tensor:
        if (window, dtype, heads) not in self._made:
            blocked = self._blocked.repeat_interleave(heads, 0)
            if window is not None:
                blocked[..., : max(0, self._now + 1 - window)] = True
            mask = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
            self._made[window, dtype, heads] = mask.masked_fill_(blocked, float("-inf"))
        return self._made[window, dtype, heads]

    def grow(self, slots: int) -> None:
        more = self._blocked.new_ones(*self._blocked.shape[:-1], slots)
        self._blocked, self._made = torch.cat([self._blocked, more], dim=-1), {}

    def keep(self, rows: Tensor) -> None:
        self._blocked, self._made = self._blocked.index_select(0, rows), {}


class _Layer(NamedTuple):
    """Slots of one layer, [c, n, S, d], and views into them."""

    slots: Tensor
    by_row_cRKSd: Tensor
    keys_ndS: Tensor
    values_nSd: Tensor


class _Slots:
    """Slots that drawn tokens are written into, of each layer. Layers may differ in K and d."""

    def __init__(self, blocked_RS: Tensor) -> None:
        self._layers: list[_Layer] = []
        self._now = self._size = blocked_RS.shape[1]
        self._now -= 1
        self.masks = _Masks(blocked_RS.unsqueeze(1))

    def add_layer(self, slots_cnSd: Tensor, num_rows: int) -> None:
        self._layers.append(_views(slots_cnSd, num_rows))

    def advance(self) -> None:
        self._now += 1
        if self._now == self._size:
            self._size += _ROOM
            self.masks.grow(_ROOM)
        self.masks.advance()

    def key_heads(self, layer: int) -> int:
        return self._layers[layer].by_row_cRKSd.shape[2]

    def put(self, layer: int, new_RcKd: Tensor) -> _Layer:
        """Write the new token. Returns the layer with it."""
        found = self._layers[layer]
        size = found.slots.shape[2]
        if size < self._size:
            num_rows = found.by_row_cRKSd.shape[1]
            larger = found.slots.new_zeros(*found.slots.shape[:2], self._size, found.slots.shape[3])
            larger[:, :, :size] = found.slots
            found = self._layers[layer] = _views(larger, num_rows)
        found.by_row_cRKSd[:, :, :, self._now] = new_RcKd.transpose(0, 1)
        return found

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        for layer, found in enumerate(self._layers):
            kept = found.by_row_cRKSd.index_select(1, rows).flatten(1, 2)
            self._layers[layer] = _views(kept, len(rows))
        self.masks.keep(rows)


def _views(slots_cnSd: Tensor, num_rows: int) -> _Layer:
    keys_nSd, values_nSd = slots_cnSd
    by_row = torch.unflatten(slots_cnSd, 1, (num_rows, -1))
    return _Layer(slots_cnSd, by_row, keys_nSd.transpose(1, 2), values_nSd)


def _split(states_RXd: Tensor, key_heads: int) -> tuple[Tensor, Tensor]:
    """query_RHd, and key and value as [R, c, K, d]."""
    query_RHd = states_RXd[:, : -2 * key_heads]
    return query_RHd, torch.unflatten(states_RXd[:, -2 * key_heads :], 1, (2, key_heads))


class OwnRows:
    """Prompts with one row each."""

    def __init__(self, starts_P: Tensor, lengths_P: Tensor) -> None:
        """starts_P: where in the packed row each prompt begins."""
        self.num_rows = len(lengths_P)
        self._tokens_PT = _right_aligned(starts_P, lengths_P)
        self._slots = _Slots(_pads(lengths_P))

    def store(self, keys_LKd: Tensor, values_LKd: Tensor) -> None:
        both = torch.stack([states_LKd[self._tokens_PT] for states_LKd in (keys_LKd, values_LKd)])
        self._slots.add_layer(both.transpose(2, 3).flatten(1, 2), self.num_rows)

    def advance(self) -> None:
        self._slots.advance()

    def attend(self, layer: int, states_RXd: Tensor, *, scaling: float, window: int | None) -> Tensor:
        key_heads = self._slots.key_heads(layer)
        query_RHd, new_RcKd = _split(states_RXd, key_heads)
        *_, keys_ndS, values_nSd = self._slots.put(layer, new_RcKd)
        query_ngd = query_RHd.reshape(len(values_nSd), -1, values_nSd.shape[-1])
        mask = self._slots.masks.of(window, query_ngd.dtype, key_heads)
        probs = torch.softmax(torch.baddbmm(mask, query_ngd, keys_ndS, alpha=scaling), dim=-1)
        return torch.bmm(probs, values_nSd).view(query_RHd.shape)

    def keep(self, rows: Tensor) -> None:
        self._slots.keep(rows)
        self.num_rows = len(rows)


class SharedRows:
    """Prompts that several rows continue."""

    def __init__(self, starts_P: Tensor, lengths_P: Tensor, prompt_R: Tensor) -> None:
        """prompt_R: prompt of each row, ascending from 0."""
        self.num_rows = len(prompt_R)
        self._tokens_PT = _right_aligned(starts_P, lengths_P)
        self._masks = _Masks(_pads(lengths_P)[:, None, None])
        # [P, K, T, d] of each layer.
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._slots = _Slots(torch.ones(self.num_rows, 0, dtype=torch.bool, device=prompt_R.device))
        self._prompt_R = prompt_R
        self._group(len(lengths_P))

    def store(self, keys_LKd: Tensor, values_LKd: Tensor) -> None:
        for stored, states_LKd in ((self._keys, keys_LKd), (self._values, values_LKd)):
            stored.append(states_LKd[self._tokens_PT].transpose(1, 2).contiguous())
        heads, width = keys_LKd.shape[1:]
        self._slots.add_layer(keys_LKd.new_empty(2, self.num_rows * heads, 0, width), self.num_rows)

    def advance(self) -> None:
        self._masks.advance()
        self._slots.advance()

    def attend(self, layer: int, states_RXd: Tensor, *, scaling: float, window: int | None) -> Tensor:
        """Scores against the prompt and against the row's own tokens, one softmax over both."""
        key_heads = self._slots.key_heads(layer)
        query_RHd, new_RcKd = _split(states_RXd, key_heads)
        *_, keys_ndS, values_nSd = self._slots.put(layer, new_RcKd)
        query_ngd = (query_RHd * scaling).reshape(len(values_nSd), -1, values_nSd.shape[-1])
        mask = self._slots.masks.of(window, query_ngd.dtype, key_heads)
        own_scores = torch.baddbmm(mask, query_ngd, keys_ndS)
        table = self._to_table(query_ngd) @ self._keys[layer].transpose(-1, -2)
        scores = self._to_rows(table + self._masks.of(window, table.dtype), query_ngd)
        probs = torch.softmax(torch.cat([scores, own_scores], dim=-1), dim=-1)
        in_prompt, own = torch.split(probs, [scores.shape[-1], own_scores.shape[-1]], dim=-1)
        result = self._to_rows(self._to_table(in_prompt) @ self._values[layer], query_ngd)
        return torch.baddbmm(result, own, values_nSd).view(query_RHd.shape)

    def keep(self, rows: Tensor) -> None:
        prompts, self._prompt_R = torch.unique(self._prompt_R[rows], return_inverse=True)
        if len(prompts) < len(self._keys[0]):
            self._keys = [keys.index_select(0, prompts) for keys in self._keys]
            self._values = [values.index_select(0, prompts) for values in self._values]
            self._masks.keep(prompts)
        self._slots.keep(rows)
        self.num_rows = len(rows)
        self._group(len(prompts))

    def _group(self, num_prompts: int) -> None:
        """Place rows in a table of P prompts by G slots; with equal groups the table is the rows
        themselves.
        """
        counts_P = torch.bincount(self._prompt_R, minlength=num_prompts)
        self._num_prompts, self._widest = num_prompts, int(counts_P.max())
        self._even = bool((counts_P == self._widest).all())
        first_P = counts_P.cumsum(0) - counts_P
        rank_R = torch.arange(len(self._prompt_R), device=counts_P.device) - first_P[self._prompt_R]
        self._place_R = self._prompt_R * self._widest + rank_R

    def _to_table(self, rows_ngx: Tensor) -> Tensor:
        """[n, g, x] -> [P, K, G * g, x], so that one product serves all rows of a prompt."""
        rows = torch.unflatten(rows_ngx, 0, (self.num_rows, -1))
        table = rows
        if not self._even:
            table = rows.new_zeros(self._num_prompts * self._widest, *rows.shape[1:])
            table.index_copy_(0, self._place_R, rows)
        table = torch.unflatten(table, 0, (self._num_prompts, self._widest)).transpose(1, 2)
        return table.flatten(2, 3)

    def _to_rows(self, table: Tensor, like_ngx: Tensor) -> Tensor:
        """[P, K, G * g, x] -> [n, g, x]."""
        rows = torch.unflatten(table, 2, (self._widest, like_ngx.shape[1])).transpose(1, 2).flatten(0, 1)
        if not self._even:
            rows = rows.index_select(0, self._place_R)
        return rows.flatten(0, 1)
