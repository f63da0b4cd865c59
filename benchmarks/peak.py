"""The yardstick of utilisation: how fast this machine multiplies matrices, and what a model's tokens ask for.

Not a figure of the data sheet: it is measured in the process and with the threads of the run it judges.
"""

import time
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from trueward.models.bfloat16 import float32_products
from trueward.models.processor import multiplied_by_onednn

__all__ = ["matmul_flops_per_s", "training_flops", "weights_per_token"]

_SIDES = (1024, 2048)
_LEAST_S = 0.4


def matmul_flops_per_s(dtype: torch.dtype, *, least_s: float = _LEAST_S) -> float:
    """Highest rate of square products, floating-point operations a second (a multiply-add is two).

    Args:
        least_s: seconds for each size; the fastest single product counts.
    """
    with float32_products(), multiplied_by_onednn():
        return max(_rate(side, dtype, least_s) for side in _SIDES)


def _rate(side: int, dtype: torch.dtype, least_s: float) -> float:
    first, second = (torch.randn(side, side).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype)
    torch.mm(first, second, out=out)
    best, ends_s = 0.0, time.perf_counter() + least_s
    while time.perf_counter() < ends_s:
        started_s = time.perf_counter()
        torch.mm(first, second, out=out)
        best = max(best, 2 * side**3 / (time.perf_counter() - started_s))
    return best


def weights_per_token(model: PreTrainedModel) -> tuple[int, int]:
    """Weights that multiply every token of a row, and those of the vocabulary head, which only meet the
    tokens that are scored. Looking up an embedding multiplies nothing.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # untyped in transformers
    head_weights = 0 if head is None else head.weight.numel()
    parameters: Mapping[int, int] = {id(p): p.numel() for p in model.parameters()}
    tied = head is not None and head.weight is embedding
    body = sum(parameters.values()) - embedding.numel() - (0 if tied else head_weights)
    return body, head_weights


def training_flops(model: PreTrainedModel, *, row_tokens: int, scored_tokens: int, factor: int = 6) -> float:
    """6 N tokens (Kaplan et al. 2020, section 2.1), counted where a product is really computed.

    Attention scores, the optimizer and what is computed twice are not counted: they lower the utilisation.

    Args:
        row_tokens: tokens the layers compute.
        scored_tokens: tokens the vocabulary head computes.
        factor: 6 for forward and backward, 2 for a forward alone.
    """
    body, head = weights_per_token(model)
    return float(factor) * (body * row_tokens + head * scored_tokens)
