"""Steps of decoding: one token of every live row per forward. Two ways: with shared keys and values, or
from scratch.

`SharedDecoder` runs each prompt once and keeps its keys and values once, whatever the number of its
completions; each row keeps only what it has drawn itself (see cache). `PlainDecoder` runs whole padded rows
at every step: it serves models that cannot take packed rows. Rows that are finished are dropped by `keep`.
Axes: R live rows, P prompts, D width, V vocabulary.
"""

from collections import Counter
from collections.abc import MutableMapping, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trueward.models.attention import AttentionStep
from trueward.models.inner import backbone_of
from trueward.models.packing import Packed, pack_prompts
from trueward.models.processor import multiplied_by_mkl
from trueward.models.scoring import (
    count_fallback,
    differs,
    head_of,
    row_attention,
    run_backbone,
    run_rows,
)
from trueward.rollouts.cache import Block, OwnRows, SharedRows, cut_lengths
from trueward.rollouts.lean import lean_layers, lean_step

__all__ = ["Decoder", "PlainDecoder", "SharedDecoder"]


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


class _Layer(NamedTuple):
    """What the attention of a layer asked for when the prompts ran."""

    place: int
    scaling: float
    window: int | None


class _Prefill:
    """Attention of the prompts, which also keeps their keys and values in the blocks."""

    def __init__(self, attention: AttentionStep, blocks: Sequence[Block]) -> None:
        self._attention = attention
        self._blocks = blocks
        self.layers: dict[int, _Layer] = {}

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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.layers[id(module)] = _Layer(len(self.layers), scale, window)
        for block in self._blocks:
            block.store(key[0].transpose(0, 1), value[0].transpose(0, 1))
        return self._attention.attend(
            module, query, key, value, scaling=scaling, dropout=dropout, window=window
        )


class SharedDecoder:
    """Prompts once, rows beside them. It is also the attention of its own steps."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_R: Sequence[int],
        *,
        lean: bool | None = None,
    ) -> None:
        """Prepare rows.

        Args:
            prompts: token ids of distinct prompts.
            prompt_R: prompt of each row, ascending; every prompt has a row.
            lean: make steps through `lean`; None where it gives the model's own hidden states.
        """
        self._model = model
        self._head = head_of(model)
        self._packed = pack_prompts(prompts, model.device)
        self._prompt_R = torch.tensor(prompt_R, device=model.device)
        # Position of each row's next token.
        self._position_R = self._packed.prompt_lengths[self._prompt_R]
        self._blocks = _blocks(model, self._packed, [len(prompt) for prompt in prompts], prompt_R)
        self._by_module: dict[int, _Layer] = {}
        self._layers: list[_Layer] = []
        if lean is None and not (lean := _runs_lean(model)):
            count_fallback(model, "its steps of decoding are not those of a Llama", "module-by-module")
        self._lean = lean_layers(backbone_of(model)) if lean else None

    def start(self) -> Tensor:
        packed = self._packed
        prefill = _Prefill(row_attention(self._model, packed), self._blocks)
        hidden_PD = run_rows(self._model, packed, prefill, packed.last_S)
        self._by_module = prefill.layers
        self._layers = list(prefill.layers.values())
        return self._head.logits(hidden_PD)[self._prompt_R]

    def step(self, ids_R: Tensor) -> Tensor:
        for block in self._blocks:
            block.advance()
        if self._lean is None:
            hidden_RD = run_backbone(self._model, ids_R.unsqueeze(0), self._position_R.unsqueeze(0), self)
        else:
            backbone = backbone_of(self._model)
            hidden_RD = lean_step(backbone, self._lean, ids_R, self._position_R, self._attend)
        self._position_R = self._position_R + 1
        return self._head.logits(hidden_RD)

    def keep(self, rows: Tensor) -> None:
        self._position_R = self._position_R[rows]
        parts, first = [], 0
        for block in self._blocks:
            parts.append(rows[(rows >= first) & (rows < first + block.num_rows)] - first)
            first += block.num_rows
        kept = [(block, part) for block, part in zip(self._blocks, parts, strict=True) if len(part)]
        for block, part in kept:
            if len(part) < block.num_rows:
                block.keep(part)
        self._blocks = [block for block, _ in kept]

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
        """One query a row."""
        states_RXd = torch.cat([states[0] for states in (query, key, value)]).transpose(0, 1)
        return self._attend(self._by_module[id(module)].place, states_RXd).unsqueeze(0)

    def _attend(self, index: int, states_RXd: Tensor) -> Tensor:
        _, scaling, window = self._layers[index]
        with multiplied_by_mkl():
            if len(self._blocks) == 1:
                return self._blocks[0].attend(index, states_RXd, scaling=scaling, window=window)
            parts = torch.split(states_RXd, [block.num_rows for block in self._blocks])
            return torch.cat(
                [
                    block.attend(index, part, scaling=scaling, window=window)
                    for block, part in zip(self._blocks, parts, strict=True)
                ]
            )


def _blocks(
    model: PreTrainedModel, packed: Packed, lengths: Sequence[int], prompt_R: Sequence[int]
) -> list[Block]:
    """Blocks of neighbouring prompts, those with one row apart from those with several."""
    config = model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slot_bytes = 2 * kv_heads * width * model.dtype.itemsize
    rows_of = Counter(prompt_R)
    starts_P = packed.last_S + 1 - packed.prompt_lengths
    blocks: list[Block] = []
    for alone, run in groupby(range(len(lengths)), lambda prompt: rows_of[prompt] == 1):
        prompts = list(run)
        first = prompts[0]
        for size in cut_lengths([lengths[prompt] for prompt in prompts], slot_bytes):
            at = slice(first, first + size)
            starts, counts = starts_P[at], packed.prompt_lengths[at]
            if alone:
                blocks.append(OwnRows(starts, counts))
            else:
                own = [prompt - first for prompt in prompt_R if first <= prompt < first + size]
                blocks.append(SharedRows(starts, counts, torch.tensor(own, device=starts.device)))
            first += size
    return blocks


# Models whose steps were tried: whether `lean` gives what the model itself gives.
_LEAN: MutableMapping[nn.Module, bool] = WeakKeyDictionary()
_PROBE_LENGTHS = (3, 10)
_PROBE_STEPS = 12


def _runs_lean(model: PreTrainedModel) -> bool:
    """Whether the lean step and the model's own agree; tried once a model, on two small prompts.

    The prompts, and the steps together, are longer than the windows of small models; both kinds of block are
    tried.
    """
    if lean_layers(backbone_of(model)) is None:
        return False
    if model not in _LEAN:
        _LEAN[model] = all(_agree(model, prompt_R) for prompt_R in ((0, 1), (0, 0, 1, 1)))
    return _LEAN[model]


def _agree(model: PreTrainedModel, prompt_R: Sequence[int]) -> bool:
    num_words = model.config.get_text_config().vocab_size
    prompts = [[(7919 * i + 13) % num_words for i in range(length)] for length in _PROBE_LENGTHS]
    own, lean = (SharedDecoder(model, prompts, prompt_R, lean=lean) for lean in (False, True))
    own.start()
    lean.start()
    for step in range(_PROBE_STEPS):
        ids_R = (torch.arange(len(prompt_R), device=model.device) + step) % num_words
        expected_RV, got_RV = own.step(ids_R), lean.step(ids_R)
        if differs(got_RV, expected_RV):
            return False
    return True
