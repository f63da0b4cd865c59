"""What a trainer says when it ends: the findings of `core.diagnosis` on its own metrics, as sentences.

The rules are those of `trueward doctor`; none stands here.
"""

from collections.abc import Sequence
from pathlib import Path

from trueward.core.config import Config
from trueward.core.diagnosis import diagnosis
from trueward.core.files import read_jsonl
from trueward.core.symptom import Bounds, Row

__all__ = ["diagnose", "warnings_of"]


def diagnose(rows: Sequence[Row], settings: Config) -> list[str]:
    """Sentences about what looks wrong in a run; an empty list if nothing does.

    Args:
        rows: lines of metrics.jsonl, in order.
        settings: those of the run; where one is a bound of a rule, it is used.
    """
    found = diagnosis(rows, Bounds.of(settings.model_dump()))
    return [finding.sentence() for finding in found.findings]


def warnings_of(folder: Path, settings: Config) -> tuple[str, ...]:
    """Sentences about the run in `folder`."""
    return tuple(diagnose(list(read_jsonl(folder / "metrics.jsonl")), settings))
