"""The engine in this process: batched decoding of a transformers model, each prompt computed once.

Rows that finish leave the batch. What a row draws depends on the seed and on its own indices, not on which
rows decode beside it (up to rounding of sums).
Axes: R live rows, T steps, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from trueward.core.errors import ModelError
from trueward.models.processor import model_products
from trueward.models.relaid import laid_out
from trueward.models.scoring import (
    check_positions,
    count_fallback,
    evaluating,
    supports_packing,
    unwrap,
)
from trueward.rollouts.decoding import Decoder, PlainDecoder, SharedDecoder
from trueward.rollouts.engine import Progress, Rollout
from trueward.rollouts.sampling import draw, uniforms_T

__all__ = ["LocalEngine"]

# Finished rows stay until they are this share of the batch: dropping rows copies the keys of those that stay.
_DROP_SHARE = 0.1
_LOGITS_ELEMENTS = 1 << 25
# Laying the weights out and putting them back takes as long as some 20 steps gain by it on a core with AVX2,
# and less with AVX-512.
_LAY_STEPS = 16
_LOGITS_ELEMENTS_GPU = 1 << 28
_KV_BYTES = 1 << 30
# Share of a GPU's memory for keys and values unless told otherwise: the rest is the model being trained.
_KV_SHARE_GPU = 0.125


class _Row(NamedTuple):
    prompt: int
    completion: int


class _Order:
    """The order of the model's weights: that of decoding from the first step on, where it is worth while.

    Prompts come before: with their many rows the usual order is as fast, or faster. So it is with one row.
    """

    def __init__(self, model: PreTrainedModel, num_steps: int, within: ExitStack) -> None:
        self._model = model
        self._within = within
        self._to_come = num_steps >= _LAY_STEPS and model.device.type == "cpu"

    def lay_out(self, num_rows: int) -> None:
        """Once, before steps of so many rows; it lasts until `within` is closed."""
        if not self._to_come or num_rows == 1:
            return
        self._to_come = False
        if self._within.enter_context(laid_out(self._model)):
            count_fallback(
                self._model, "its weights are mapped from a file (load_causal copies them)", "unordered"
            )


class LocalEngine:
    """Draws from a causal language model, PEFT-wrapped or not; it sees the model's weights as they are at
    each call.

    Args:
        model: the model; its mode (training or not) is put back after each call.
        stop_ids: tokens that end a completion.
        kv_bytes: bound on the memory of keys and values; more rows than fit are decoded in turns. None:
            1 GiB, on a GPU an eighth of its memory.
    """

    def __init__(self, model: nn.Module, stop_ids: Collection[int], *, kv_bytes: int | None = None) -> None:
        if not stop_ids:
            raise ModelError("decoding needs at least one stop token", remedy="pass the ids that end a turn")
        self._model = model
        self._stop_ids = sorted(stop_ids)
        self._kv_bytes = kv_bytes

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_progress: Progress | None = None,
    ) -> list[Rollout]:
        """Draw completions of each prompt; see `Engine.generate`.

        Raises:
            ValueError: a count or the temperature is out of range, or a prompt is empty.
            ModelError: a prompt with its completion would go beyond the model's positions.
        """
        if num_completions < 1 or max_new_tokens < 1:
            raise ValueError(
                f"num_completions and max_new_tokens must be > 0, got {num_completions} and {max_new_tokens}"
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("every prompt must have at least one token, got an empty one")
        if not prompts:
            return []
        model = unwrap(self._model)
        check_positions(model, max(map(len, prompts)) + max_new_tokens)
        done: dict[_Row, Rollout] = {}
        total = len(prompts) * num_completions
        report = on_progress or _silent
        with evaluating(self._model), model_products(model), ExitStack() as within:
            order = _Order(model, max_new_tokens, within)
            for part in self._parts(model, prompts, num_completions, max_new_tokens):
                rollouts = self._decode(
                    model,
                    prompts,
                    part,
                    max_new_tokens,
                    temperature,
                    seed,
                    lambda n: report(len(done) + n, total),
                    order,
                )
                done.update(zip(part, rollouts, strict=True))
                report(len(done), total)
        return [done[_Row(p, c)] for p in range(len(prompts)) for c in range(num_completions)]

    def _parts(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        max_new_tokens: int,
    ) -> Iterator[list[_Row]]:
        """Rows that decode together: equal prompts side by side, similar lengths near each other."""
        order = sorted(range(len(prompts)), key=lambda p: (len(prompts[p]), tuple(prompts[p]), p))
        rows = [_Row(p, c) for p in order for c in range(num_completions)]
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_bytes = self._kv_bytes or _default_kv_bytes(model.device)
        logits = _LOGITS_ELEMENTS if model.device.type == "cpu" else _LOGITS_ELEMENTS_GPU
        token_bytes = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
        part: list[_Row] = []
        for row in rows:
            # Sorted by length: the newest prompt is the longest, and every row is padded to it at worst.
            tokens = (len(part) + 1) * (len(prompts[row.prompt]) + max_new_tokens)
            too_large = tokens * token_bytes > kv_bytes or (len(part) + 1) * config.vocab_size > logits
            if part and too_large:
                yield part
                part = []
            part.append(row)
        yield part

    def _decode(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[_Row],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        report: Callable[[int], None],
        order: _Order,
    ) -> list[Rollout]:
        device = model.device
        decoder = _decoder(model, prompts, rows)
        uniforms_RT = torch.from_numpy(
            np.stack([uniforms_T(seed, row.prompt, row.completion, max_new_tokens) for row in rows])
        ).to(device)
        stop_ids = torch.tensor(self._stop_ids, device=device)
        ids_RT = torch.zeros(len(rows), max_new_tokens, dtype=torch.int64, device=device)
        logps_RT = torch.zeros(len(rows), max_new_tokens, device=device)
        lengths_R = torch.full((len(rows),), max_new_tokens, device=device)
        finished_R = torch.zeros(len(rows), dtype=torch.bool, device=device)
        live = torch.arange(len(rows), device=device)
        logits_RV = decoder.start()
        order.lay_out(len(rows))
        for t in range(max_new_tokens):
            ids_R, logps_R = draw(logits_RV, uniforms_RT[live, t], temperature)
            ids_RT[live, t], logps_RT[live, t] = ids_R, logps_R
            before = finished_R[live]
            ended = torch.isin(ids_R, stop_ids) & ~before
            # No selection by a mask: its size would have to come from the device.
            lengths_R[live] = torch.where(ended, t + 1, lengths_R[live])
            finished_R[live] = before | ended
            going = ~(before | ended)
            num_going = int(going.sum())
            report(len(rows) - num_going)
            if num_going == 0 or t + 1 == max_new_tokens:
                break
            if num_going <= (1 - _DROP_SHARE) * len(live):
                rest = going.nonzero().squeeze(1)
                decoder.keep(rest)
                live, ids_R = live[rest], ids_R[rest]
            logits_RV = decoder.step(ids_R)
        table = zip(
            rows, ids_RT.tolist(), logps_RT.tolist(), lengths_R.tolist(), finished_R.tolist(), strict=True
        )
        return [
            Rollout(row.prompt, tuple(ids[:length]), tuple(logps[:length]), finished)
            for row, ids, logps, length, finished in table
        ]


def _default_kv_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _KV_BYTES
    return int(_KV_SHARE_GPU * torch.cuda.get_device_properties(device).total_memory)


def _silent(done: int, total: int) -> None:
    """The progress of those who did not ask for it."""


def _decoder(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Sequence[_Row]) -> Decoder:
    distinct: dict[tuple[int, ...], int] = {}
    prompt_R = [distinct.setdefault(tuple(prompts[row.prompt]), len(distinct)) for row in rows]
    kind = SharedDecoder if supports_packing(model) else PlainDecoder
    return kind(model, list(distinct), prompt_R)
