"""How right the reward model is on held-out pairs: accuracy, calibration, baselines to beat, and whether its
scores depend on how texts are batched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueward.core.stats import Estimate, paired_difference
from trueward.data.chat import TokenGroup
from trueward.data.records import Comparison
from trueward.evals import (
    Baseline,
    bag_of_words_baseline,
    chance_baseline,
    fit_bag_of_words,
    longer_answer_baseline,
    reward_invariance,
    verdict,
)
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData
from trueward.pipeline.held_out import judge_pairs
from trueward.pipeline.stages import reward_pairs
from trueward.pipeline.training import tokenised
from trueward.pipeline.workspace import Workspace

__all__ = ["RewardMeasured", "measure_reward"]

# Pairs scored alone and in company: enough for rows of every length.
_INVARIANCE_PAIRS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMeasured:
    """Figures of the reward model for the summary (`body`) and for the gate (`metrics`)."""

    body: dict[str, Any]
    metrics: dict[str, Estimate]
    model: str
    template: str
    data: FeedbackData[Comparison]


def measure_reward(
    workspace: Workspace, scorer: LoadedModel, data: FeedbackData[Comparison]
) -> RewardMeasured:
    """Score the held-out pairs and compare with chance, the longer answer and a bag of words."""
    groups, _ = tokenised(scorer, data.test, max_tokens=workspace.recipe.data.max_tokens)
    kept = {group.id for group in groups}
    records = [record for record in data.test if record.id in kept]
    gold = [
        float(r.meta.extra["gold_chosen"]) - float(r.meta.extra["gold_rejected"])
        for r in records
        if "gold_chosen" in r.meta.extra
    ]
    report = judge_pairs(
        scorer.model,
        reward_pairs(groups, data.test),
        max_tokens_per_forward=workspace.recipe.eval.max_tokens_per_forward,
        gold_differences=gold if len(gold) == len(records) else None,
    )
    baselines = _baselines(data, records, groups)
    best = max(baselines, key=lambda b: b.accuracy.value)
    invariance = reward_invariance(
        scorer.model,
        groups[:_INVARIANCE_PAIRS],
        max_tokens_per_forward=workspace.recipe.eval.max_tokens_per_forward,
    )
    metrics = {
        "rm_accuracy": report.accuracy,
        "rm_accuracy_margin_over_best_baseline": paired_difference(
            report.outcomes, best.outcomes, groups=report.groups
        ),
        "rm_ece": Estimate(report.ece, report.ece, report.ece, len(records)),
        "rm_invariance": invariance.estimate(),
    }
    if report.gold_accuracy is not None:
        metrics["rm_gold_accuracy"] = report.gold_accuracy
    return RewardMeasured(
        body={
            "accuracy": report.accuracy._asdict(),
            "gold_accuracy": report.gold_accuracy._asdict() if report.gold_accuracy else None,
            "ece": report.ece,
            "invariance": invariance.largest,
            "bins": [bar._asdict() for bar in report.bins],
            "baselines": [_baseline(b) for b in baselines],
            "verdict": verdict(report, baselines),
        },
        metrics=metrics,
        model=scorer.hash,
        template=scorer.template_hash,
        data=data,
    )


def _baselines(
    data: FeedbackData[Comparison], records: Sequence[Comparison], groups: Sequence[TokenGroup]
) -> list[Baseline]:
    """Chance, the longer answer and a bag of words of the training pairs, on the held-out ones."""
    labels, asked = _labels(records), [group.prompt_ids for group in groups]
    lengths = np.array([[len(c.ids) for c in group.completions] for group in groups])
    judge = fit_bag_of_words(
        [r.chosen for r in data.train], [r.rejected for r in data.train], soft_labels=_labels(data.train)
    )
    return [
        chance_baseline(len(records), soft_labels=labels),
        longer_answer_baseline(lengths[:, 0], lengths[:, 1], soft_labels=labels, groups=asked),
        bag_of_words_baseline(
            judge,
            [r.chosen for r in records],
            [r.rejected for r in records],
            soft_labels=labels,
            groups=asked,
        ),
    ]


def _labels(records: Sequence[Comparison]) -> list[float]:
    return [1.0 if record.soft_label is None else record.soft_label for record in records]


def _baseline(baseline: Baseline) -> dict[str, Any]:
    return {"name": baseline.name, "accuracy": baseline.accuracy._asdict()}
