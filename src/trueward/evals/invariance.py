"""Whether a reward model's score of a text depends on what it is scored together with. It must not.

The same pairs are scored text by text, pair by pair, in short and in full rows, in another order and with
chosen and rejected exchanged. What is left is rounding: below 1e-4 in float32, below 0.05 in bfloat16.
Axes: S texts (chosen and rejected in turn).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from trueward.core.errors import EvidenceError
from trueward.core.seed import derive_seed
from trueward.core.stats import Estimate
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens, pack
from trueward.models.scoring import sequence_rewards
from trueward.trainers.groups import cut
from trueward.trainers.optim import device_of

__all__ = ["InvarianceReport", "reward_invariance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InvarianceReport:
    """How far scores of the same texts lie apart."""

    largest: float
    """Largest difference to the score of the text alone, over texts and ways, in units of the reward."""
    ways: dict[str, float]
    """The same for each way of scoring."""
    spread: float
    """Standard deviation of the scores, to compare with."""
    num_texts: int

    def estimate(self) -> Estimate:
        """The figure as evidence (`rm_invariance`); a maximum over the very texts has no interval."""
        return Estimate(self.largest, self.largest, self.largest, self.num_texts)


@torch.no_grad()
def reward_invariance(
    model: nn.Module, pairs: Sequence[TokenGroup], *, max_tokens_per_forward: int, seed: int = 0
) -> InvarianceReport:
    """Score pairs in several ways and compare with each text scored alone.

    Args:
        model: sequence classifier with one label.
        pairs: groups of two completions; 32 show what there is to see.
        max_tokens_per_forward: real tokens of a row.
        seed: of the orders.

    Raises:
        EvidenceError: no pairs, a group that is none, or scores that are not finite.
        DataError: a pair is longer than `max_tokens_per_forward`.
    """
    if not pairs or any(len(pair.completions) != 2 for pair in pairs):
        raise EvidenceError(
            "invariance is measured on pairs", value=[len(pair.completions) for pair in pairs][:4]
        )
    texts = [replace(pair, completions=(text,)) for pair in pairs for text in pair.completions]
    alone_S = _scores(model, [[text] for text in texts])
    if not bool(torch.isfinite(alone_S).all()):
        raise EvidenceError(
            f"{int((~torch.isfinite(alone_S)).sum())} scores are not finite", expected="a score for each text"
        )
    # A score that is lost in company differs from itself alone by as much as can be.
    ways = {
        name: float(torch.nan_to_num(scores_S - alone_S, nan=float("inf")).abs().max())
        for name, scores_S in _ways(model, pairs, max_tokens_per_forward, seed)
    }
    return InvarianceReport(
        largest=max(ways.values()),
        ways=ways,
        spread=float(alone_S.std(correction=0)),
        num_texts=len(alone_S),
    )


def _ways(
    model: nn.Module, pairs: Sequence[TokenGroup], max_tokens: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Name of a way of scoring -> scores_S in the order of the pairs."""

    def rows(groups: Sequence[TokenGroup], budget: int = max_tokens) -> list[list[TokenGroup]]:
        return cut(groups, lambda group: group, budget)

    yield "pair by pair", _scores(model, [[pair] for pair in pairs])
    longest = max(map(count_tokens, pairs))
    yield "short rows", _scores(model, rows(pairs, max(longest, max_tokens // 8)))
    yield "full rows", _scores(model, rows(pairs))
    order = np.random.default_rng(derive_seed(seed, "invariance")).permutation(len(pairs))
    shuffled_B2 = _scores(model, rows([pairs[i] for i in order])).view(-1, 2)
    yield "another order", shuffled_B2[torch.from_numpy(np.argsort(order))].flatten()
    exchanged = [replace(pair, completions=pair.completions[::-1]) for pair in pairs]
    yield "exchanged", _scores(model, rows(exchanged)).view(-1, 2).flip(1).flatten()


def _scores(model: nn.Module, rows: Sequence[Sequence[TokenGroup]]) -> Tensor:
    """scores_S of the texts of all rows, in order."""
    return torch.cat([sequence_rewards(model, pack(row, device_of(model))).double().cpu() for row in rows])
