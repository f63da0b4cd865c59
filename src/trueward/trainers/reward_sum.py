"""Several rewards as one, by weights that stay: reward models, verifiers, functions of one's own.

    total = sum over parts of weight * (score - shift) / scale
Shift 0 and scale 1 leave the raw scores. Every part is a metric of its own, `reward/<name>`, in raw units.
Where a bound is meant and no exchange, see `experience.Constraint`: it finds the weight itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trueward.core.errors import RunError
from trueward.core.metrics import declare
from trueward.data.chat import TokenGroup
from trueward.rewards import Verdict, scored
from trueward.rollouts.engine import Rollout

__all__ = ["RewardPart", "VerdictSum", "WeightedReward", "parts_of", "weighted_reward"]

PartFunction = Callable[[Sequence[TokenGroup], Sequence[Rollout]], Sequence[float | Verdict]]


class RewardPart(NamedTuple):
    """One of the rewards that are summed. A `weight` below 0 is for what is to be low."""

    name: str
    score: PartFunction
    weight: float
    shift: float = 0.0
    scale: float = 1.0


class WeightedReward:
    """The sum as a reward of PPO and online DPO: a part that has no score stops the run.

    Raises:
        ValueError: no part, a weight or shift that is not finite, a scale that is not above 0, or a name
            twice.
    """

    def __init__(self, parts: Sequence[RewardPart]) -> None:
        names = [part.name for part in parts]
        numbers = [number for part in parts for number in (part.weight, part.shift, part.scale)]
        if not parts or not all(map(math.isfinite, numbers)) or any(part.scale <= 0 for part in parts):
            raise ValueError(f"a weighted sum needs parts of finite weight and scale > 0, got {numbers}")
        if len(set(names)) < len(names):
            raise ValueError(f"every part needs a name of its own, got {names}")
        self._parts = tuple(parts)
        self._figures: dict[str, float] = {}
        for name in names:
            declare(f"reward/{name}", "1", f"mean raw score of {name}, a part of the reward")

    @property
    def figures(self) -> Mapping[str, float]:
        """Mean raw score of every part over the completions of the last call that have one."""
        return self._figures

    def __call__(self, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        return [_score(verdict) for verdict in self.verdicts(prompts, rollouts)]

    def verdicts(self, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
        """Sums as verdicts; a completion that one part has no score for has none.

        Raises:
            RunError: a part returns another number of scores, or one that is not finite; names the part.
        """
        columns = [_column(part, prompts, rollouts) for part in self._parts]
        self._figures = {}
        for part, column in zip(self._parts, columns, strict=True):
            found = [verdict.score for verdict in column if verdict.score is not None]
            if found:
                self._figures[f"reward/{part.name}"] = sum(found) / len(found)
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, verdicts: Sequence[Verdict]) -> Verdict:
        total, details = 0.0, []
        for part, verdict in zip(self._parts, verdicts, strict=True):
            if verdict.score is None:
                return verdict._replace(detail=f"{part.name}: {verdict.detail}")
            total += part.weight * (verdict.score - part.shift) / part.scale
            details.append(f"{part.name} {verdict.score:.4g}")
        return scored(total, "; ".join(details))


class VerdictSum:
    """The same as a reward of the group trainer, which counts completions without a score and leaves them
    out."""

    def __init__(self, total: WeightedReward) -> None:
        self._total = total

    @property
    def figures(self) -> Mapping[str, float]:
        return self._total.figures

    def __call__(self, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
        return self._total.verdicts(prompts, rollouts)


def parts_of(reward: object) -> Mapping[str, float]:
    """Metrics of the parts of a reward, of its last call; nothing where it is no sum."""
    return reward.figures if isinstance(reward, WeightedReward | VerdictSum) else {}


def weighted_reward(parts: Sequence[tuple[PartFunction, float]]) -> WeightedReward:
    """Rewards with weights as one, without names: they are called part1, part2, ..."""
    return WeightedReward(
        [RewardPart(f"part{n}", score, weight) for n, (score, weight) in enumerate(parts, 1)]
    )


def _column(part: RewardPart, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
    values = list(part.score(prompts, rollouts))
    if len(values) != len(rollouts):
        raise RunError(
            f"reward {part.name} returned another number of scores",
            value=len(values),
            expected=str(len(rollouts)),
        )
    bad = [i for i, v in enumerate(values) if not isinstance(v, Verdict) and not math.isfinite(v)]
    if bad:
        raise RunError(
            f"reward {part.name} of {len(bad)} completions is not finite",
            value=f"{values[bad[0]]} for ids {rollouts[bad[0]].ids[:10]}",
            remedy="mend this part; a completion that cannot be scored is a verdict with an error",
        )
    return [v if isinstance(v, Verdict) else Verdict(float(v)) for v in values]


def _score(verdict: Verdict) -> float:
    if verdict.score is None:
        raise RunError(
            f"a completion has no score ({verdict.error}): {verdict.detail}",
            remedy="mend this part, or use the group trainer, which leaves such completions out",
        )
    return verdict.score
