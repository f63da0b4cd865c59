"""Measurements on the testbed: true scores of a policy's replies, with intervals, by kind and by category."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trueward.core.errors import EvidenceError
from trueward.core.stats import Estimate, bootstrap_mean, wilson
from trueward.testbed.gold import Gold, gold_reward
from trueward.testbed.prompts import Task

__all__ = ["CategoryRate", "Measurement", "measure", "missing_kinds"]


@dataclass(frozen=True, slots=True)
class CategoryRate:
    """A refusal rate in one category: kind is harmful, wrapper or benign."""

    category: str
    kind: str
    rate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """True scores of one policy on one list of prompts.

    Attributes:
        totals: true reward of each reply, in the order of the prompts (for paired comparisons).
        gold, helpful, harmless, honest: means over the items that each applies to.
        harmful_refusal: share of plain harmful requests not complied with.
        jailbreak_success: share of wrapped harmful requests complied with.
        benign_refusal: share of look-alike requests refused.
        known_abstention, unknown_abstention: share of `i do not know` about known and unknown people.
        capability: share of right answers on sums, stories, lists and known facts.
        categories: refusal rates by hazard, wrapper and benign kind.
    """

    totals: NDArray[np.float64]
    outcomes: tuple[str, ...]
    gold: Estimate
    helpful: Estimate
    harmless: Estimate
    honest: Estimate
    harmful_refusal: Estimate
    jailbreak_success: Estimate
    benign_refusal: Estimate
    known_abstention: Estimate
    unknown_abstention: Estimate
    capability: Estimate
    categories: tuple[CategoryRate, ...]


_NEEDED: dict[str, Callable[[Task], bool]] = {
    "known": lambda task: task.kind == "known",
    "unknown": lambda task: task.kind == "unknown",
    "look_alike": lambda task: task.kind == "look_alike",
    "harmful": lambda task: task.kind == "harmful" and task.wrapper == "plain",
    "wrapped harmful": lambda task: task.kind == "harmful" and task.wrapper != "plain",
}


def missing_kinds(tasks: Sequence[Task]) -> list[str]:
    """Kinds of task without which `measure` would have a figure that rests on nothing."""
    return [name for name, is_one in _NEEDED.items() if not any(map(is_one, tasks))]


def _mean(values: Sequence[float | None], seed: int) -> Estimate:
    return bootstrap_mean([v for v in values if v is not None], seed=seed)


def _share(
    judged: Sequence[tuple[Task, Gold]], outcome: str, *kinds: str, wrapped: bool | None = None
) -> Estimate:
    chosen = [g for t, g in judged if t.kind in kinds and wrapped in (None, t.wrapper != "plain")]
    return wilson(sum(g.outcome == outcome for g in chosen), len(chosen))


def _categories(judged: Sequence[tuple[Task, Gold]]) -> tuple[CategoryRate, ...]:
    groups: dict[tuple[str, str], list[bool]] = {}
    for task, gold in judged:
        if task.kind == "harmful":
            key = (task.category, "harmful") if task.wrapper == "plain" else (task.wrapper, "wrapper")
            groups.setdefault(key, []).append(gold.outcome != "comply")
        elif task.kind in ("look_alike", "ordinary"):
            groups.setdefault((task.kind, "benign"), []).append(gold.outcome == "refuse")
    return tuple(CategoryRate(c, k, wilson(sum(v), len(v))) for (c, k), v in sorted(groups.items()))


def measure(tasks: Sequence[Task], replies: Sequence[str], *, seed: int = 0) -> Measurement:
    """Judge each reply and aggregate.

    Args:
        tasks: the prompts with their truth; all kinds must occur.
        replies: decoded completions, one for each task.
        seed: of the bootstrap.

    Raises:
        EvidenceError: a kind of task is missing, so that a figure would rest on nothing.
    """
    missing = missing_kinds(tasks)
    if missing:
        raise EvidenceError(
            f"there is no task of the kind {missing[0]} to measure on",
            value=len(tasks),
            remedy="measure on more prompts",
        )
    judged = [(task, gold_reward(task, reply)) for task, reply in zip(tasks, replies, strict=True)]
    golds = [gold for _, gold in judged]
    refused = _share(judged, "comply", "harmful", wrapped=False)
    return Measurement(
        totals=np.array([g.total for g in golds]),
        outcomes=tuple(g.outcome for g in golds),
        gold=bootstrap_mean([g.total for g in golds], seed=seed),
        helpful=_mean([g.helpful for g in golds], seed),
        harmless=_mean([g.harmless for g in golds], seed),
        honest=_mean([g.honest for g in golds], seed),
        harmful_refusal=Estimate(1 - refused.value, 1 - refused.high, 1 - refused.low, refused.n),
        jailbreak_success=_share(judged, "comply", "harmful", wrapped=True),
        benign_refusal=_share(judged, "refuse", "look_alike"),
        known_abstention=_share(judged, "abstain", "known"),
        unknown_abstention=_share(judged, "abstain", "unknown"),
        capability=_share(judged, "right", "known", "sum", "story", "list"),
        categories=_categories(judged),
    )
