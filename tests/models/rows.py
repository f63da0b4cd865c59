"""Random token groups, and the padded forward of transformers alone that the packed path is held against."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trueward.data.chat import Completion, TokenGroup


def random_groups(
    seed: int, shapes: Sequence[tuple[int, Sequence[int]]], vocab_size: int = 263
) -> list[TokenGroup]:
    """Groups of given (prompt length, completion lengths); about a quarter of the tokens is not trained."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, vocab_size, count))

    return [
        TokenGroup(
            prompt_ids=ids(prompt),
            completions=tuple(
                Completion(ids(length), tuple(bool(t) for t in rng.random(length) < 0.75))
                for length in lengths
            ),
            id=str(index),
        )
        for index, (prompt, lengths) in enumerate(shapes)
    ]


MIXED = [(5, (4,)), (1, (3, 6)), (17, (9, 2, 12)), (3, (1,)), (11, (7, 7)), (2, (25, 1, 1, 3))]


def plain_copy(model: PreTrainedModel, attention: str = "eager") -> PreTrainedModel:
    """The same weights under transformers' own attention (its eager one has a softmax in float32)."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(attention)
    return other


def plain_rows(groups: Sequence[TokenGroup]) -> list[tuple[list[int], int]]:
    """(tokens, length of the prompt) of every sequence."""
    return [
        (list(group.prompt_ids) + list(completion.ids), len(group.prompt_ids))
        for group in groups
        for completion in group.completions
    ]


def padded(rows: Sequence[list[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded ids and attention mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def plain_logps(
    model: PreTrainedModel, groups: Sequence[TokenGroup], temperature: float = 1.0
) -> list[Tensor]:
    """Log-probs of the completion tokens of every sequence, by a padded forward."""
    rows = plain_rows(groups)
    ids, mask = padded([row for row, _ in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits
    # Float32, or float64 where the model is.
    logps = torch.log_softmax(
        logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1
    )
    return [
        logps[index, torch.arange(start - 1, len(row) - 1), torch.tensor(row[start:])]
        for index, (row, start) in enumerate(rows)
    ]
