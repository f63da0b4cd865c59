"""Pairs from groups of scored completions: the best against the worst of each group.

Not here: drawing and scoring. Axes: P prompts, G completions of each.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup

__all__ = ["BestWorst", "best_against_worst"]


class BestWorst(NamedTuple):
    """Pairs, and what did not become one.

    Attributes:
        groups: two completions each, best first, in the order of the prompts.
        gaps: by how much the best scores above the worst, in units of the score, one a pair.
        rows: index of the prompt of each pair, and of its best and worst completion.
        ties: prompts whose completions score alike, or whose best and worst are the same tokens.
    """

    groups: list[TokenGroup]
    gaps: list[float]
    rows: list[tuple[int, int, int]]
    ties: int


def best_against_worst(groups: Sequence[TokenGroup], scores: Sequence[float]) -> BestWorst:
    """The best completion of each prompt against its worst; of equal ones the first drawn.

    Args:
        groups: P prompts with their completions, at least two each.
        scores: of all completions, prompt by prompt; higher is better.

    Returns:
        BestWorst; every prompt is a pair or a tie.

    Raises:
        DataError: a group of one, a score too many or too few, or one that is not finite.
    """
    counts = [len(group.completions) for group in groups]
    if min(counts, default=2) < 2 or sum(counts) != len(scores) or not all(map(math.isfinite, scores)):
        raise DataError(
            "best against worst needs a finite score of each of at least two completions",
            value=f"{min(counts, default=0)} completions in a group, {sum(counts)} in all, {len(scores)} "
            f"scores of which {sum(not math.isfinite(score) for score in scores)} are not finite",
            expected="as many finite scores as completions",
        )
    made = BestWorst([], [], [], 0)
    ties = first = 0
    for number, group in enumerate(groups):
        own = scores[first : first + len(group.completions)]
        first += len(group.completions)
        best, worst = own.index(max(own)), own.index(min(own))
        chosen, rejected = group.completions[best], group.completions[worst]
        # The same tokens in two places of a batch may score differently in their last bits.
        if own[best] == own[worst] or chosen.ids == rejected.ids:
            ties += 1
            continue
        made.groups.append(TokenGroup(group.prompt_ids, (chosen, rejected), group.id))
        made.gaps.append(own[best] - own[worst])
        made.rows.append((number, best, worst))
    return made._replace(ties=ties)
