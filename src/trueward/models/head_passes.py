"""The passes over the logits of one chunk, as formulas that a compiler turns into one kernel each: on a GPU.

Written out operation by operation they read and write the logits nine times, and a GPU waits for memory. Not
here: the products around them, and the chunks (see head).
Axes: n tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from trueward.models.flex import allow_compilations

__all__ = ["Passes", "compiled_passes", "logit_gradient", "logit_scores"]


def logit_scores(
    logits_nV: Tensor, labels_n: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each label: log-prob, whether no logit is higher; and of each distribution: entropy (0 unless asked
    for) and log-sum-exp. In float32 or better.

    Args:
        temperature: > 0; divides the logits.
    """
    values_nV = _full(logits_nV) / temperature
    peaks_n1 = values_nV.amax(-1, keepdim=True)
    exps_nV = (values_nV - peaks_n1).exp()
    sums_n = exps_nV.sum(-1)
    log_sums_n = peaks_n1.squeeze(1) + sums_n.log()
    label_n = values_nV.gather(1, labels_n.unsqueeze(1)).squeeze(1)
    entropy_n = torch.zeros_like(sums_n)
    if entropy:
        # H = log sum - mean, both from the largest logit on; exp(-inf) * -inf counts as 0.
        below_nV = torch.where(exps_nV > 0, values_nV - peaks_n1, 0.0)
        entropy_n = sums_n.log() - (exps_nV * below_nV).sum(-1) / sums_n
    return label_n - log_sums_n, label_n == peaks_n1.squeeze(1), entropy_n, log_sums_n


def logit_gradient(
    logits_nV: Tensor,
    labels_n: Tensor,
    temperature: float,
    log_sums_n: Tensor,
    grad_n: Tensor,
    entropy_n: Tensor,
    grad_entropy_n: Tensor | None,
) -> Tensor:
    """Gradient with respect to the logits, in their precision: g (onehot - p) / T, and for an entropy H
    -g p (log p + H) / T more.

    Args:
        log_sums_n: of `logit_scores`.
        grad_n: g of the log-probs; `grad_entropy_n` of the entropies, None where they were not asked for.
    """
    logps_nV = _full(logits_nV) / temperature - log_sums_n.unsqueeze(1)
    probs_nV = logps_nV.exp()
    words_V = torch.arange(logits_nV.shape[1], device=logits_nV.device)
    chosen_nV = words_V == labels_n.unsqueeze(1)
    grad_nV = torch.where(chosen_nV, 1.0 - probs_nV, -probs_nV) * grad_n.unsqueeze(1)
    if grad_entropy_n is not None:
        surprise_nV = torch.where(probs_nV > 0, logps_nV + entropy_n.unsqueeze(1), 0.0)
        grad_nV = grad_nV - grad_entropy_n.unsqueeze(1) * probs_nV * surprise_nV
    return (grad_nV / temperature).to(logits_nV.dtype)


def _full(logits_nV: Tensor) -> Tensor:
    return logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()


class Passes(NamedTuple):
    """`logit_scores` and `logit_gradient`, compiled or not."""

    scores: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = logit_scores
    gradient: Callable[..., Tensor] = logit_gradient


@cache
def compiled_passes(*, entropy: bool) -> Passes | None:
    """Both, compiled for whatever lengths come; None, said once, where they cannot be compiled or differ."""
    allow_compilations()
    made = Passes(
        torch.compile(logit_scores, dynamic=True, fullgraph=True),
        torch.compile(logit_gradient, dynamic=True, fullgraph=True),
    )
    logits_nV = torch.linspace(-4, 4, 6 * 33, device="cuda").view(6, 33).to(torch.bfloat16)
    labels_n = torch.arange(6, device="cuda")
    ones_n = torch.ones(6, device="cuda")

    def both(passes: Passes) -> list[Tensor]:
        scores = passes.scores(logits_nV, labels_n, 1.0, entropy)
        _, _, entropy_n, log_sums_n = scores
        asked = ones_n if entropy else None
        return [*scores, passes.gradient(logits_nV, labels_n, 1.0, log_sums_n, ones_n, entropy_n, asked)]

    try:
        pairs = zip(both(made), both(Passes()), strict=True)
        equal = all(torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-4) for a, b in pairs)
        reason = "" if equal else "they give other results"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, FailOnRecompileLimitHit) as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if reason:
        Console(stderr=True).print(
            f"passes over the logits cannot be compiled ({reason}); using slower ones", markup=False
        )
    return None if reason else made
