"""What tuning cost: loss and accuracy of the tuned model on held-out text, against the base model, item by
item.

Ratios are of sums (all right answers over all right answers), with intervals from the linearised ratio over
items, so that long items weigh as much as their tokens. Axes: N completion tokens, S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from trueward.core.errors import EvidenceError
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.models.packing import batches_by_tokens, pack
from trueward.models.scoring import score_completions

__all__ = ["HeldOut", "Retention", "accuracy_ratio", "compare_held_out", "held_out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """One model on held-out completions; the tuples have one entry for each completion."""

    nll: Estimate
    """Mean negative log-likelihood of a trained token, nats."""
    accuracy: Estimate
    """Share of trained tokens that greedy decoding would give."""
    nll_sums: tuple[float, ...]
    correct: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """A tuned model against its base on the same held-out completions."""

    nll_increase: Estimate
    """Tuned minus base, nats a token; above 0 something was lost."""
    accuracy_ratio: Estimate
    """Greedy token accuracy of tuned over that of base; below 1 something was lost."""


def _ratio(numerators: ArrayLike, denominators: ArrayLike, *, seed: int) -> Estimate:
    """sum(numerators) / sum(denominators), with an interval from the linearised ratio over items.

    Source:
        Cochran 1977, "Sampling Techniques", section 2.11.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if a.size != b.size or b.sum() == 0:
        raise EvidenceError(
            "a ratio needs as many numerators as denominators, not all of them 0",
            value=(a.size, b.size, b.sum()),
        )
    ratio = a.sum() / b.sum()
    return bootstrap_mean(ratio + (a - ratio * b) / b.mean(), seed=seed)


@torch.no_grad()
def held_out(
    model: nn.Module, groups: Sequence[TokenGroup], *, max_tokens: int = 8192, seed: int = 0
) -> HeldOut:
    """Loss and greedy token accuracy of a model on held-out text.

    Args:
        model: a causal language model in evaluation mode.
        groups: prompts with held-out completions; only trained tokens count.
        max_tokens: tokens of a forward, > 0.
        seed: of the bootstrap over completions.

    Raises:
        EvidenceError: no completions, none with a trained token, or a loss that is not finite.
        DataError: a group longer than `max_tokens`.
    """
    sums: list[float] = []
    correct: list[int] = []
    tokens: list[int] = []
    for batch in batches_by_tokens(groups, max_tokens):
        packed = pack([groups[index] for index in batch], device=next(model.parameters()).device)
        scores = score_completions(model, packed)
        columns_3N = torch.stack(
            [-scores.logps_N, scores.greedy_N.float(), torch.ones_like(scores.logps_N)]
        ).double()
        totals_3S = torch.zeros(3, packed.num_sequences, dtype=torch.float64, device=columns_3N.device)
        totals_3S = totals_3S.index_add(1, packed.sequence_N, torch.where(packed.trained_N, columns_3N, 0.0))
        nll_S, correct_S, tokens_S = totals_3S.tolist()
        sums += nll_S
        correct += [int(count) for count in correct_S]
        tokens += [int(count) for count in tokens_S]
    if not tokens:
        raise EvidenceError("there is no held-out text to measure on", remedy="keep a held-out split")
    return HeldOut(
        nll=_ratio(sums, tokens, seed=seed),
        accuracy=_ratio(correct, tokens, seed=seed),
        nll_sums=tuple(sums),
        correct=tuple(correct),
        tokens=tuple(tokens),
    )


def accuracy_ratio(base_correct: ArrayLike, tuned_correct: ArrayLike, *, seed: int = 0) -> Estimate:
    """Right answers of the tuned model over those of the base, on the same items.

    Args:
        base_correct: right answers of the base for each item (0 or 1, or a count).
        tuned_correct: those of the tuned model, same items.
        seed: of the bootstrap over items.

    Raises:
        EvidenceError: counts that differ, or a base without one right answer, against which nothing can be
            retained.
    """
    if not np.any(np.asarray(base_correct)):
        raise EvidenceError(
            "the base has no right answer, so there is nothing to retain", remedy="use easier items"
        )
    return _ratio(tuned_correct, base_correct, seed=seed)


def compare_held_out(base: HeldOut, tuned: HeldOut, *, seed: int = 0) -> Retention:
    """Compare a tuned model with its base.

    Raises:
        EvidenceError: they were measured on different completions, or the base predicts no token.
    """
    if base.tokens != tuned.tokens:
        raise EvidenceError(
            "base and tuned model were measured on different completions",
            value=(len(base.tokens), len(tuned.tokens)),
            expected="the same groups, tokenised alike",
        )
    increases = np.subtract(tuned.nll_sums, base.nll_sums)
    return Retention(
        nll_increase=_ratio(increases, base.tokens, seed=seed),
        accuracy_ratio=accuracy_ratio(base.correct, tuned.correct, seed=seed),
    )
