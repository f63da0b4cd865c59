"""Rows without padding: groups of one prompt and its completions, end to end, with the index tensors that
read them.

Not here: tokenising, and the attention itself (see attention). The prompt of a group stands once in the
row; each completion continues its positions and sees only the prompt and itself.
Axes: L tokens of the row, N completion tokens of the row, S sequences (completions), T tokens of a
completion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.models.attention import AttentionStep, Segment, build_plan
from trueward.models.flex import Ints, build_flex_plan

__all__ = [
    "Kernel",
    "Packed",
    "batches_by_tokens",
    "completion_mask",
    "count_tokens",
    "pack",
    "pack_prompts",
    "unflatten",
]


Kernel = Literal["compiled", "flex", "buckets"]
"""Ways to compute a row: flex-attention inside compiled layers, flex-attention, and padded buckets of similar
segments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One packed row. Sequences are ordered group by group, completion by completion; index tensors are
    int64.
    """

    input_ids_1L: Tensor
    position_ids_1L: Tensor
    segments: tuple[Segment, ...]
    """What sees what."""
    labels_N: Tensor
    """Ids of the completion tokens."""
    predict_N: Tensor
    """Where in the row stands the hidden state that predicts each completion token."""
    position_N: Tensor
    """Where in the row stands the completion token itself."""
    trained_N: Tensor
    """Bool: the token counts in losses."""
    sequence_N: Tensor
    """Sequence of each completion token."""
    last_S: Tensor
    """Where in the row stands the last token of each sequence (or prompt, for `pack_prompts`)."""
    lengths_S: Tensor
    """Completion tokens of each sequence."""
    prompt_lengths: Tensor
    """Prompt tokens of each group, int64."""
    groups: tuple[TokenGroup, ...]
    num_sequences: int
    num_tokens: int
    longest: int
    """Tokens of the longest prompt with its completion."""
    longest_completion: int
    """T: tokens of the longest completion."""
    steps: dict[Kernel, AttentionStep] = field(default_factory=dict, repr=False)

    def attention(self, kernel: Kernel) -> AttentionStep:
        """The attention of this row, laid out at the first call and the same for every layer and model."""
        if kernel not in self.steps:
            size, device = self.num_tokens, self.input_ids_1L.device
            if kernel == "buckets":
                self.steps[kernel] = build_plan(self.segments, num_tokens=size, device=device)
            else:
                self.steps[kernel] = build_flex_plan(
                    self.segments, num_tokens=size, device=device, compiled=kernel == "compiled"
                )
        return self.steps[kernel]


def count_tokens(group: TokenGroup) -> int:
    """Tokens a group takes in a row: its prompt once, and every completion."""
    return len(group.prompt_ids) + sum(len(completion.ids) for completion in group.completions)


def batches_by_tokens(groups: Sequence[TokenGroup], max_tokens: int) -> list[list[int]]:
    """Cut a list of groups into rows of at most `max_tokens` tokens, in the given order.

    Args:
        max_tokens: tokens of a row, > 0.

    Returns:
        Indices into `groups`, row by row; every index once.

    Raises:
        DataError: one group alone is longer than `max_tokens`.
    """
    batches: list[list[int]] = []
    room = 0
    for index, group in enumerate(groups):
        size = count_tokens(group)
        if size > max_tokens:
            raise DataError(
                f"group {group.id or index!r} has more tokens than fit into one forward",
                value=size,
                expected=f"at most {max_tokens}",
                remedy="raise the token budget, or lower max_tokens of the data to drop and count the row",
            )
        if size > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= size
    return batches


def _check(group: TokenGroup, index: int) -> None:
    name = group.id or str(index)
    if not group.prompt_ids:
        raise DataError(
            f"group {name!r} has no prompt tokens", remedy="a prompt starts with at least one token"
        )
    if not group.completions:
        raise DataError(f"group {name!r} has no completion")
    for completion in group.completions:
        if not completion.ids:
            raise DataError(
                f"group {name!r} has a completion without tokens", remedy="drop the record and count it"
            )
        if len(completion.ids) != len(completion.trained):
            raise DataError(
                f"group {name!r}: trained flags do not match completion tokens",
                value=len(completion.trained),
                expected=str(len(completion.ids)),
            )


def pack(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> Packed:
    """Lay groups end to end in one row.

    Args:
        groups: at least one; each has at least one prompt token and one completion of at least one token.
        device: where the tensors go.

    Raises:
        DataError: an empty prompt, an empty completion, or flags that do not match the tokens.
    """
    if not groups:
        raise DataError("there is nothing to pack: no groups")
    for index, group in enumerate(groups):
        _check(group, index)
    return _pack(groups, device)


def pack_prompts(prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """Lay prompts alone end to end in one row, for the first step of decoding; `last_S` is the last token
    of each.

    Raises:
        DataError: no prompts, or one without tokens.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise DataError("there is nothing to continue: no prompts, or one without tokens")
    return _pack([TokenGroup(prompt_ids=tuple(prompt), completions=()) for prompt in prompts], device)


def _pack(groups: Sequence[TokenGroup], device: torch.device | str) -> Packed:
    starts: list[int] = []
    bases: list[int] = []
    sizes: list[int] = []
    prompt_ends: list[int] = []
    segments: list[Segment] = []
    at = 0
    # Pieces of the row: a prompt, or a completion with the prompt whose positions it continues.
    for group in groups:
        start, prompt = at, len(group.prompt_ids)
        starts.append(start)
        bases.append(0)
        sizes.append(prompt)
        prompt_ends.append(-1)
        at += prompt
        for number, completion in enumerate(group.completions):
            length = len(completion.ids)
            starts.append(at)
            bases.append(prompt)
            sizes.append(length)
            prompt_ends.append(start + prompt - 1)
            # The first completion stands right behind its prompt: together they are one plain causal segment.
            segments.append(
                Segment(at, length, start, prompt) if number else Segment(start, prompt + length, 0, 0)
            )
            at += length
        if not group.completions:
            segments.append(Segment(start, prompt, 0, 0))
    return _laid_out(groups, segments, *map(np.array, (starts, bases, sizes, prompt_ends)), device=device)


def _laid_out(
    groups: Sequence[TokenGroup],
    segments: Sequence[Segment],
    starts: Ints,
    bases: Ints,
    sizes: Ints,
    prompt_ends: Ints,
    *,
    device: torch.device | str,
) -> Packed:
    """The row of pieces: where each starts, the position of its first token, its tokens, and where the last
    token of its prompt stands (-1: it is a prompt)."""
    count = int(sizes.sum())
    ids_L = np.fromiter(chain.from_iterable(_ids(groups)), np.int64, count)
    positions_L = np.arange(count) - np.repeat(starts - bases, sizes)
    answers = prompt_ends >= 0
    starts_S, lengths_S = starts[answers], sizes[answers]
    sequence_N = np.repeat(np.arange(len(lengths_S)), lengths_S)
    first_S = np.cumsum(lengths_S) - lengths_S
    position_N = np.arange(len(sequence_N)) + np.repeat(starts_S - first_S, lengths_S)
    predict_N = position_N - 1
    predict_N[first_S] = prompt_ends[answers]
    # Of a row of prompts alone, the last tokens of these.
    ends = starts_S + lengths_S if answers.any() else starts + sizes
    trained = (completion.trained for group in groups for completion in group.completions)
    trained_N = np.fromiter(chain.from_iterable(trained), np.bool_, len(sequence_N))

    def moved(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Packed(
        input_ids_1L=moved(ids_L).unsqueeze(0),
        position_ids_1L=moved(positions_L).unsqueeze(0),
        segments=tuple(segments),
        labels_N=moved(ids_L[position_N]),
        predict_N=moved(predict_N),
        position_N=moved(position_N),
        trained_N=moved(trained_N),
        sequence_N=moved(sequence_N),
        last_S=moved(ends - 1),
        lengths_S=moved(lengths_S),
        prompt_lengths=moved(sizes[~answers]),
        groups=tuple(groups),
        num_sequences=len(ends),
        num_tokens=count,
        longest=int(positions_L.max()) + 1,
        longest_completion=int(lengths_S.max(initial=0)),
    )


def _ids(groups: Sequence[TokenGroup]) -> Iterator[tuple[int, ...]]:
    for group in groups:
        yield group.prompt_ids
        for completion in group.completions:
            yield completion.ids


def _slots_N(packed: Packed) -> Tensor:
    """Index of each completion token in its own sequence."""
    starts_S = packed.lengths_S.cumsum(0) - packed.lengths_S
    return torch.arange(len(packed.labels_N), device=starts_S.device) - starts_S[packed.sequence_N]


def unflatten(values_N: Tensor, packed: Packed) -> Tensor:
    """Values of completion tokens as a table, right-padded with 0; gradients pass.

    Args:
        values_N: one value per completion token.

    Returns:
        values_ST, T the longest completion.

    Raises:
        ValueError: the count of values is not N.
    """
    if values_N.shape != packed.labels_N.shape:
        raise ValueError(
            f"values_N must have shape {tuple(packed.labels_N.shape)}, got {tuple(values_N.shape)}"
        )
    shape = (packed.num_sequences, packed.longest_completion)
    return values_N.new_zeros(shape).index_put((packed.sequence_N, _slots_N(packed)), values_N)


def completion_mask(packed: Packed) -> Tensor:
    """mask_ST, bool: True where a token of the completion is trained; padding is False."""
    return unflatten(packed.trained_N, packed)
