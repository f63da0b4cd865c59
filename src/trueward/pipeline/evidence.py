"""Figures of an evaluation as evidence records, under the metric names that charters use."""

from collections.abc import Mapping
from typing import Any

from trueward.core.stats import Estimate
from trueward.pipeline.measured import HeldPrompts, Measured
from trueward.pipeline.reward_report import RewardMeasured
from trueward.pipeline.workspace import Workspace
from trueward.registry import Subject, evidence_body

__all__ = ["gate_metrics", "put_evidence"]

_EXTRA = ("win_rate_judge", "gold_gain_over_sft", "jailbreak_success", "abstention_ratio")


def gate_metrics(figures: Mapping[str, Any]) -> dict[str, Estimate]:
    """The figures of one policy under the names that charters use."""
    found: dict[str, Estimate] = {}
    if figures.get("win_against") == "sft":
        found[f"win_rate_{figures['win_judge']}"] = Estimate(**figures["win_rate"])
    for name in _EXTRA:
        if name in figures["extra"]:
            found[name] = Estimate(**figures["extra"][name])
    if "refusal" in figures:
        found["harmful_refusal"] = Estimate(**figures["refusal"]["harmful"])
        found["benign_refusal"] = Estimate(**figures["refusal"]["benign"])
    if "kl" in figures:
        found["kl"] = Estimate(**figures["kl"])
    if "capability" in figures:
        found["capability_retention"] = Estimate(**figures["capability"])
    return found


def put_evidence(
    workspace: Workspace,
    stages: Mapping[str, Any],
    measured: Mapping[str, Measured],
    held: HeldPrompts,
    reward: RewardMeasured | None,
    *,
    source: str,
) -> dict[str, str]:
    """One evidence record for each policy and for the reward model.

    Args:
        stages: figures of each policy.
        source: the file the figures are in.

    Returns:
        Stage -> registry id.
    """
    ids: dict[str, str] = {}
    for stage, mine in measured.items():
        metrics = gate_metrics(stages[stage])
        if stage == "base" or not metrics:
            continue
        body = evidence_body(
            "policy",
            subject=Subject(stage=stage, model=mine.hash),
            charter=workspace.charter.hash,
            data={held.name: held.hash},
            template=mine.template,
            source=source,
            metrics=metrics,
            operating_point=workspace.recipe.operating_point or "",
        )
        ids[stage] = workspace.registry.put(
            "evidence", body, [workspace.record_of(stage, "model"), held.record]
        )
    if reward is not None:
        body = evidence_body(
            "reward_model",
            subject=Subject(stage="reward", model=reward.model),
            charter=workspace.charter.hash,
            data={reward.data.name: reward.data.hash},
            template=reward.template,
            source=source,
            metrics=reward.metrics,
            operating_point=workspace.recipe.operating_point or "",
        )
        parents = [workspace.record_of("reward", "model"), *reward.data.records]
        ids["reward"] = workspace.registry.put("evidence", body, parents)
    return ids
