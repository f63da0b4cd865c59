"""What the metrics of a run say about its health: every rule of the tables held against them.

The one source of what `trueward doctor` prints and of what trainers say when they end.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trueward.core.symptom import Bounds, Finding, History, Row
from trueward.core.symptoms_policy import POLICY_RULES
from trueward.core.symptoms_training import TRAINING_RULES

__all__ = ["RULES", "Diagnosis", "diagnosis"]

RULES = (*TRAINING_RULES, *POLICY_RULES)


class Diagnosis(NamedTuple):
    """What was found, which rules were held against the run, and which could not be (name -> why)."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: Mapping[str, str]


def diagnosis(rows: Sequence[Row], bounds: Bounds | None = None) -> Diagnosis:
    """Hold every rule against the metrics of a run. A finding is a hint, never a stop.

    Args:
        rows: lines of metrics.jsonl, in order.
        bounds: what the run was asked to keep to.
    """
    history = History(rows, bounds or Bounds())
    obstacles = {rule.name: rule.obstacle(history) for rule in RULES}
    able = [rule for rule in RULES if not obstacles[rule.name]]
    return Diagnosis(
        findings=tuple(found for rule in able if (found := rule.check(history)) is not None),
        checked=tuple(rule.name for rule in able),
        unchecked={name: why for name, why in obstacles.items() if why},
    )
