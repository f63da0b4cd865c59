"""What was measured, on which model, with which data, template and charter. Records, no computation."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from trueward.core.config import Config, build
from trueward.core.errors import ConfigError, EvidenceError
from trueward.core.hashing import short
from trueward.core.run import now
from trueward.core.stats import Estimate
from trueward.registry.store import Record, verified

__all__ = ["Evidence", "Metric", "Subject", "evidence_body", "read_evidence"]


class Metric(Config):
    """One figure. None stands for what could not be measured; a gate fails on it."""

    model_config = ConfigDict(strict=True)

    value: float | None = Field(allow_inf_nan=False)
    low: float | None = Field(default=None, allow_inf_nan=False)
    """Lower end of the 95 % interval."""
    high: float | None = Field(default=None, allow_inf_nan=False)
    n: int = Field(ge=0)
    """Number of items behind the figure."""
    unit: str = ""


class Subject(Config):
    """The model that was measured."""

    stage: str
    model: str
    """Content hash of the model folder."""


class Evidence(Config):
    """The body of an evidence record."""

    model_config = ConfigDict(validate_by_alias=True, serialize_by_alias=True)

    schema_: Literal["trueward.evidence/1"] = Field(alias="schema")
    kind: str
    """What was done, such as `gold_scores` or `reward_accuracy`."""
    subject: Subject
    charter: str
    """Hash of the charter in force."""
    data: Mapping[str, str] = Field(min_length=1)
    """Name of each data set measured on, to its content hash."""
    template: str
    """Hash of the chat template the prompts were rendered with."""
    operating_point: str = ""
    """Operating point of the charter the prompts were sent under; empty where no system prompt was added."""
    created: str
    source: str
    """The command or file the figures came from."""
    metrics: Mapping[str, Metric] = Field(min_length=1)


def evidence_body(
    kind: str,
    *,
    subject: Subject,
    charter: str,
    data: Mapping[str, str],
    template: str,
    source: str,
    metrics: Mapping[str, Estimate | Metric],
    operating_point: str = "",
    created: str | None = None,
) -> dict[str, Any]:
    """The body to `put` as an evidence record; every argument is explained at `Evidence`.

    A figure that is not finite is stored as None, so that the gate can say so; it is never left out.

    Raises:
        EvidenceError: a value does not fit.
    """
    body = {
        "schema": "trueward.evidence/1",
        "kind": kind,
        "subject": subject.model_dump(),
        "charter": charter,
        "data": dict(data),
        "template": template,
        "operating_point": operating_point,
        "created": created or now(),
        "source": source,
        "metrics": {name: _metric(metric).model_dump() for name, metric in metrics.items()},
    }
    return _validated(body, "evidence").model_dump(mode="json")


def read_evidence(record: Record) -> Evidence:
    """The evidence in a record, after checking the record's hash.

    Raises:
        EvidenceError: changed after it was written, of another kind, or not of the schema.
    """
    if verified(record).kind != "evidence":
        raise EvidenceError(f"record {short(record.id)} is a {record.kind}", expected="evidence")
    return _validated(record.body, f"evidence {short(record.id)}")


def _validated(body: Mapping[str, Any], source: str) -> Evidence:
    try:
        return build(Evidence, body, source=source)
    except ConfigError as error:
        raise EvidenceError(str(error), remedy="measure again") from error


def _metric(metric: Estimate | Metric) -> Metric:
    if isinstance(metric, Metric):
        return metric
    value, low, high = (end if math.isfinite(end) else None for end in metric[:3])
    return Metric(value=value, low=low, high=high, n=metric.n)
