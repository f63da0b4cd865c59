"""How far a model has moved from its reference: KL per completion, exact over the vocabulary and by
estimators.

Right only for completions that the model itself drew, at temperature 1: their average is then an average
under the model. Axes: N completion tokens, S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trueward.core.errors import EvidenceError
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.models.packing import Packed, batches_by_tokens, pack
from trueward.models.scoring import exact_kl_N, score_completions
from trueward.objectives import kl

__all__ = ["KLReport", "kl_to_ref"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KLReport:
    """KL(model || ref), nats a completion, with intervals over completions."""

    exact: Estimate
    """Sum over the completion's tokens of the exact KL of the next-token distribution."""
    k1: Estimate
    """The same from the drawn tokens alone: unbiased, with a wide interval; may be negative."""
    k3: Estimate
    """The same from the drawn tokens alone: unbiased, never negative, heavy-tailed far from the reference."""
    tokens: float
    """Mean length of a completion, so that `exact.value / tokens` is the KL of a token."""


def _totals(values_N: Tensor, packed: Packed) -> list[float]:
    """Sums over the trained tokens of each sequence."""
    totals_S = torch.zeros(packed.num_sequences, dtype=torch.float64, device=values_N.device)
    kept_N = torch.where(packed.trained_N, values_N.double(), 0.0)
    result: list[float] = totals_S.index_add(0, packed.sequence_N, kept_N).tolist()
    return result


@torch.no_grad()
def kl_to_ref(
    model: nn.Module,
    ref_model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    max_tokens: int = 8192,
    seed: int = 0,
) -> KLReport:
    """Measure KL(model || ref) on completions drawn from `model`.

    Args:
        model: the policy, a causal language model in evaluation mode.
        ref_model: the reference, with the same vocabulary.
        groups: prompts with completions sampled from `model` at temperature 1; tokens whose `trained` is
            False (not drawn by the model) are left out.
        max_tokens: tokens of a forward, > 0.
        seed: of the bootstrap over completions.

    Raises:
        EvidenceError: no completions, or a KL that is not finite.
        DataError: a group longer than `max_tokens`.

    Source:
        Schulman 2020, "Approximating KL Divergence" (k1, k3).
    """
    exact: list[float] = []
    k1: list[float] = []
    k3: list[float] = []
    lengths: list[float] = []
    for batch in batches_by_tokens(groups, max_tokens):
        packed = pack([groups[index] for index in batch], device=next(model.parameters()).device)
        logps_N = score_completions(model, packed).logps_N
        ref_logps_N = score_completions(ref_model, packed).logps_N
        exact += _totals(exact_kl_N(model, ref_model, packed), packed)
        k1 += _totals(kl.k1(logps_N, ref_logps_N), packed)
        k3 += _totals(kl.k3(logps_N, ref_logps_N), packed)
        lengths += _totals(torch.ones_like(logps_N), packed)
    if not exact:
        raise EvidenceError(
            "there are no completions to measure the KL on", remedy="sample some from the model"
        )
    return KLReport(
        exact=bootstrap_mean(exact, seed=seed),
        k1=bootstrap_mean(k1, seed=seed),
        k3=bootstrap_mean(k3, seed=seed),
        tokens=sum(lengths) / len(lengths),
    )
