"""Functions of whole next-token distributions at the completion tokens, in chunks of tokens.

For losses that need every word of the vocabulary (distillation, the student's own likeliest word): the logits
of a chunk are made, used and, for the backward, made again, so that N x V logits never exist at once. What
needs the log-prob of one token only goes through `head`, which is faster.
Axes: N completion tokens, n tokens of a chunk, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trueward.models.head import Head
from trueward.models.scoring import head_of

__all__ = ["Predicting", "over_vocabulary", "shared_words"]

# Elements of the logits of one chunk: a divergence holds about six tensors of that size at once.
_CHUNK_ELEMENTS = 1 << 22
_CHUNK_ELEMENTS_GPU = 1 << 26


class Predicting(NamedTuple):
    """What a model needs to predict the completion tokens: its head, and the hidden states before them."""

    head: Head
    hidden_ND: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, hidden_ND: Tensor) -> "Predicting":
        return cls(head_of(model), hidden_ND)


def shared_words(*models: PreTrainedModel) -> int:
    """V: words that all of the models predict; some pad their matrix beyond the tokenizer's words."""
    return min(int(model.config.get_text_config().vocab_size) for model in models)


def over_vocabulary(
    models: Sequence[Predicting],
    compute: Callable[..., tuple[Tensor, ...]],
    *,
    num_words: int,
    per_token: Sequence[Tensor] = (),
    chunk_tokens: int | None = None,
) -> tuple[Tensor, ...]:
    """Apply `compute` to the logits of one or more models, chunk by chunk, and join what it gives.

    Args:
        models: for the same N tokens each.
        compute: from logits_nV of each model, float32 or better, and the chunk of each of `per_token`, to
            tensors with first axis n. It is called again in the backward, so it must be a function of its
            input alone.
        num_words: V; logits beyond are left out.
        per_token: tensors with first axis N, without gradient.
        chunk_tokens: n; None: as many as make chunks of 2 ** 22 logits, on a GPU 2 ** 26.

    Returns:
        Tensors with first axis N; gradients reach heads and hidden states where these want them.

    Raises:
        ValueError: no token, or models of different tokens.
    """
    sizes = {len(model.hidden_ND) for model in models}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"the models must predict the same tokens, at least one, got {sorted(sizes)}")
    (num_tokens,) = sizes
    on_cpu = models[0].hidden_ND.device.type == "cpu"
    fitting = max(1, (_CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS_GPU) // num_words)
    size = chunk_tokens or fitting
    heads = [model.head for model in models]

    def one(given: Sequence[Tensor], *hidden: Tensor) -> tuple[Tensor, ...]:
        logits = [_logits(head, h_nD, num_words) for head, h_nD in zip(heads, hidden, strict=True)]
        return compute(*logits, *given)

    parts = []
    for start in range(0, num_tokens, size):
        at = slice(start, start + size)
        hidden, given = [model.hidden_ND[at] for model in models], [values[at] for values in per_token]
        # A single chunk is held whole in any case; computing it twice would save nothing.
        again = torch.is_grad_enabled() and num_tokens > size
        parts.append(checkpoint(one, given, *hidden, use_reentrant=False) if again else one(given, *hidden))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _logits(head: Head, hidden_nD: Tensor, num_words: int) -> Tensor:
    logits_nV = head.logits(hidden_nD)[:, :num_words]
    return logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()
