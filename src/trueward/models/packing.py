"""Rows without padding: groups of one prompt and its completions, end to end, with the index tensors that
read them.

Not here: tokenising, and the attention itself (see attention). The prompt of a group stands once in the
row; each completion continues its positions and sees only the prompt and itself.
Axes: L tokens of the row, N completion tokens of the row, S sequences (completions), T tokens of a
completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.models.attention import AttentionStep, Segment, build_plan
from trueward.models.flex import build_flex_plan

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
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    position: list[int] = []
    trained: list[bool] = []
    lengths: list[int] = []
    last: list[int] = []
    labels: list[int] = []
    sequence: list[int] = []
    segments: list[Segment] = []
    for group in groups:
        start, prompt = len(ids), len(group.prompt_ids)
        ids.extend(group.prompt_ids)
        positions.extend(range(prompt))
        for number, completion in enumerate(group.completions):
            first, length = len(ids), len(completion.ids)
            ids.extend(completion.ids)
            positions.extend(range(prompt, prompt + length))
            predict.extend([start + prompt - 1, *range(first, first + length - 1)])
            position.extend(range(first, first + length))
            trained.extend(completion.trained)
            labels.extend(completion.ids)
            sequence.extend([len(lengths)] * length)
            lengths.append(length)
            last.append(first + length - 1)
            # The first completion stands right behind its prompt: together they are one plain causal segment.
            segments.append(
                Segment(first, length, start, prompt) if number else Segment(start, prompt + length, 0, 0)
            )
        if not group.completions:
            segments.append(Segment(start, prompt, 0, 0))
            last.append(start + prompt - 1)

    # Lists, not operations on tensors: nothing here waits for the device, or wakes threads for a few numbers.
    def indices(values: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.int64))

    def to_device(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    return Packed(
        input_ids_1L=indices(ids).unsqueeze(0),
        position_ids_1L=indices(positions).unsqueeze(0),
        segments=tuple(segments),
        labels_N=indices(labels),
        predict_N=indices(predict),
        position_N=indices(position),
        trained_N=to_device(torch.tensor(trained, dtype=torch.bool)),
        sequence_N=indices(sequence),
        last_S=indices(last),
        lengths_S=indices(lengths),
        prompt_lengths=indices([len(group.prompt_ids) for group in groups]),
        groups=tuple(groups),
        num_sequences=len(last),
        num_tokens=len(ids),
        longest=max(positions) + 1,
        longest_completion=max(lengths, default=0),
    )


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
