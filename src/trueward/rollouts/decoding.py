"""Steps of decoding: one token of every live row per forward. Two ways: with shared keys and values, or
from scratch.

`SharedDecoder` runs each prompt once and keeps its keys and values once, whatever the number of its
completions; each row keeps only what it has drawn itself. `PlainDecoder` runs whole padded rows at every
step: it serves models that cannot take packed rows. Rows that are finished are dropped by `keep`.
Axes: R live rows, P live prompts, G rows of a prompt (padded), H heads, K key heads, g = H / K, T prompt
tokens, t drawn tokens, d head width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trueward.models.attention import AttentionStep
from trueward.models.packing import Packed, pack_prompts
from trueward.models.scoring import head_of, row_attention, run_backbone

__all__ = ["Decoder", "PlainDecoder", "SharedDecoder"]

_FIRST_CAPACITY = 64


class Decoder(Protocol):
    """State of the rows being decoded."""

    def start(self) -> Tensor:
        """Run the prompts. Returns logits_RV of the first tokens."""
        ...

    def step(self, ids_R: Tensor) -> Tensor:
        """Append one token to each row. Returns logits_RV of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order (ascending indices)."""
        ...


class PlainDecoder:
    """Every step a padded forward of everything drawn so far."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], prompt_R: Sequence[int]
    ) -> None:
        self._model = model
        self._rows = [list(prompts[prompt]) for prompt in prompt_R]

    def start(self) -> Tensor:
        device = self._model.device
        lengths = [len(row) for row in self._rows]
        ids = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in self._rows], device=device)
        last_R = torch.tensor(lengths, device=device) - 1
        mask = torch.arange(max(lengths), device=device) <= last_R.unsqueeze(1)
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        return logits[torch.arange(len(lengths), device=device), last_R]

    def step(self, ids_R: Tensor) -> Tensor:
        for row, token in zip(self._rows, ids_R.tolist(), strict=True):
            row.append(token)
        return self.start()

    def keep(self, rows: Tensor) -> None:
        self._rows = [self._rows[index] for index in rows.tolist()]


class _Prefill:
    """Attention of the prompts, which also keeps their keys and values, one padded block a prompt."""

    def __init__(self, packed: Packed, attention: AttentionStep) -> None:
        self._attention = attention
        starts = packed.last_S + 1 - packed.prompt_lengths
        steps = torch.arange(packed.longest, device=starts.device)
        # Padding reads the last token again; it is masked by position.
        self._tokens_PT = torch.minimum(starts.unsqueeze(1) + steps, packed.last_S.unsqueeze(1))
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.layers: dict[int, int] = {}

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
        self.layers[id(module)] = len(self.keys)
        # [1, K, L, d] -> [P, K, T, d]
        self.keys.append(key[0].transpose(0, 1)[self._tokens_PT].transpose(1, 2).contiguous())
        self.values.append(value[0].transpose(0, 1)[self._tokens_PT].transpose(1, 2).contiguous())
        return self._attention.attend(
            module, query, key, value, scaling=scaling, dropout=dropout, window=window
        )


class SharedDecoder:
    """Prompts once, rows beside them. It is also the attention of its own steps."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], prompt_R: Sequence[int]
    ) -> None:
        """Prepare rows.

        Args:
            prompts: token ids of distinct prompts.
            prompt_R: prompt of each row, ascending.
        """
        self._model = model
        self._head = head_of(model)
        self._device = model.device
        self._prompts = prompts
        self._prompt_R = torch.tensor(prompt_R, device=self._device)
        self._lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        self._drawn = 0
        self._capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._own_keys: list[Tensor] = []
        self._own_values: list[Tensor] = []
        self._layers: dict[int, int] = {}
        self._masks: dict[int | None, Tensor] = {}
        self._group()

    def start(self) -> Tensor:
        packed = pack_prompts(self._prompts, self._device)
        prefill = _Prefill(packed, row_attention(self._model, packed))
        hidden_LD = run_backbone(self._model, packed.input_ids_1L, packed.position_ids_1L, prefill)
        self._keys, self._values, self._layers = prefill.keys, prefill.values, prefill.layers
        return self._head.logits(hidden_LD[packed.last_S])[self._prompt_R]

    def step(self, ids_R: Tensor) -> Tensor:
        if self._drawn == self._capacity:
            self._grow(len(ids_R))
        positions_R = self._lengths_P[self._prompt_R] + self._drawn
        self._masks = {}
        hidden_RD = run_backbone(self._model, ids_R.unsqueeze(0), positions_R.unsqueeze(0), self)
        self._drawn += 1
        return self._head.logits(hidden_RD)

    def keep(self, rows: Tensor) -> None:
        prompts, prompt_R = torch.unique(self._prompt_R[rows], return_inverse=True)
        if len(prompts) < len(self._lengths_P):
            self._lengths_P = self._lengths_P[prompts]
            self._keys = [keys.index_select(0, prompts) for keys in self._keys]
            self._values = [values.index_select(0, prompts) for values in self._values]
        self._prompt_R = prompt_R
        self._own_keys = [keys.index_select(0, rows) for keys in self._own_keys]
        self._own_values = [values.index_select(0, rows) for values in self._own_values]
        self._group()

    def _group(self) -> None:
        """Place rows in a table of P prompts by G slots; with equal groups the table is the rows
        themselves.
        """
        counts_P = torch.bincount(self._prompt_R, minlength=len(self._lengths_P))
        self._num_slots = int(counts_P.max())
        self._even = bool((counts_P == self._num_slots).all())
        first_P = counts_P.cumsum(0) - counts_P
        rank_R = torch.arange(len(self._prompt_R), device=self._device) - first_P[self._prompt_R]
        self._slot_R = self._prompt_R * self._num_slots + rank_R

    def _grow(self, num_rows: int) -> None:
        capacity = max(_FIRST_CAPACITY, 2 * self._capacity)

        def grown(old: Tensor | None, like: Tensor) -> Tensor:
            new = like.new_empty(num_rows, like.shape[1], capacity, like.shape[3])
            if old is not None:
                new[:, :, : self._capacity] = old
            return new

        none: list[Tensor | None] = [None] * len(self._keys)
        old_keys, old_values = (self._own_keys, self._own_values) if self._capacity else (none, none)
        self._own_keys = [grown(old, like) for old, like in zip(old_keys, self._keys, strict=True)]
        self._own_values = [grown(old, like) for old, like in zip(old_values, self._values, strict=True)]
        self._capacity = capacity

    def _prompt_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [P, 1, 1, T] of prompt keys for the present step."""
        if window not in self._masks:
            steps_T = torch.arange(self._keys[0].shape[2], device=self._device)
            lengths_P1 = self._lengths_P.unsqueeze(1)
            visible = steps_T < lengths_P1
            if window is not None:
                visible = visible & (lengths_P1 + self._drawn - steps_T < window)
            blocked = torch.zeros(visible.shape, dtype=dtype, device=self._device)
            self._masks[window] = blocked.masked_fill_(~visible, float("-inf"))[:, None, None]
        return self._masks[window]

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
        """One query a row: scores against its prompt's keys and its own, one softmax over both."""
        layer = self._layers[id(module)]
        num_rows, heads, width = query.shape[2], query.shape[1], query.shape[3]
        kv_heads = key.shape[1]
        shared = heads // kv_heads
        now = self._drawn
        own_keys, own_values = self._own_keys[layer], self._own_values[layer]
        own_keys[:, :, now] = key[0].transpose(0, 1)
        own_values[:, :, now] = value[0].transpose(0, 1)
        first = 0 if window is None else max(0, now + 1 - window)
        own_keys, own_values = own_keys[:, :, first : now + 1], own_values[:, :, first : now + 1]
        # [R, K, g, d]
        q = query[0].transpose(0, 1).reshape(num_rows, kv_heads, shared, width)
        q = q * (width**-0.5 if scaling is None else scaling)
        prompt_scores = self._to_table(q) @ self._keys[layer].transpose(-1, -2)
        prompt_scores = prompt_scores + self._prompt_mask(window, q.dtype)
        scores = torch.cat([self._to_rows(prompt_scores, shared), q @ own_keys.transpose(-1, -2)], dim=-1)
        probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        in_prompt = probs[..., : prompt_scores.shape[-1]]
        result = self._to_rows(self._to_table(in_prompt) @ self._values[layer], shared)
        result = result + probs[..., prompt_scores.shape[-1] :] @ own_values
        return result.reshape(1, num_rows, heads, -1)

    def _to_table(self, rows: Tensor) -> Tensor:
        """[R, K, g, x] -> [P, K, G * g, x], so that one product serves all rows of a prompt."""
        if self._num_slots == 1:
            return rows
        table = rows
        if not self._even:
            table = rows.new_zeros(len(self._lengths_P) * self._num_slots, *rows.shape[1:])
            table.index_copy_(0, self._slot_R, rows)
        table = torch.unflatten(table, 0, (len(self._lengths_P), self._num_slots)).transpose(1, 2)
        return table.flatten(2, 3)

    def _to_rows(self, table: Tensor, shared: int) -> Tensor:
        if self._num_slots == 1:
            return table
        rows = torch.unflatten(table, 2, (self._num_slots, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self._even else rows.index_select(0, self._slot_R)
