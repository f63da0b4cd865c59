"""The plain path: every prompt with its completion is a padded row of its own, through the unchanged model.

Slow and simple. It serves models that cannot take packed rows, and it is what the packed path is checked
against.
Axes: S sequences, T tokens of the longest, L tokens of the packed row, N completion tokens, D width, V
vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trueward.models.packing import Packed

__all__ = ["Padded", "pad_rows", "plain_hidden", "plain_logits"]


class Padded(NamedTuple):
    """The sequences of a packed row, one a row, padded on the right; and the way back."""

    input_ids_ST: Tensor
    attention_mask_ST: Tensor
    row_L: Tensor
    """Which padded row holds each token of the packed row; a prompt is read from its first completion's."""
    column_L: Tensor


def pad_rows(packed: Packed) -> Padded:
    """Unpack into padded rows. Padding holds id 0 and is masked by position, never by id."""
    rows: list[list[int]] = []
    row_L: list[int] = []
    for group in packed.groups:
        prompt = list(group.prompt_ids)
        row_L.extend([len(rows)] * len(prompt))
        completions = [list(completion.ids) for completion in group.completions] or [[]]
        for ids in completions:
            row_L.extend([len(rows)] * len(ids))
            rows.append(prompt + ids)
    longest = max(map(len, rows))
    device = packed.input_ids_1L.device
    lengths_S1 = torch.tensor([[len(row)] for row in rows], device=device)
    return Padded(
        torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device),
        (torch.arange(longest, device=device) < lengths_S1).long(),
        torch.tensor(row_L, device=device),
        packed.position_ids_1L[0],
    )


def plain_hidden(backbone: nn.Module, packed: Packed) -> Tensor:
    """hidden_LD in the order of the packed row, from a padded forward of the backbone."""
    padded = pad_rows(packed)
    output = backbone(input_ids=padded.input_ids_ST, attention_mask=padded.attention_mask_ST, use_cache=False)
    hidden_LD: Tensor = output.last_hidden_state[padded.row_L, padded.column_L]
    return hidden_LD


def plain_logits(model: nn.Module, packed: Packed) -> Tensor:
    """logits_NV of the model's own forward at the positions that predict the completion tokens."""
    padded = pad_rows(packed)
    output = model(input_ids=padded.input_ids_ST, attention_mask=padded.attention_mask_ST, use_cache=False)
    rows_N = padded.row_L[packed.position_N]
    logits_NV: Tensor = output.logits[rows_N, padded.column_L[packed.position_N] - 1]
    return logits_NV
