"""The gate: a charter's criteria held against evidence. It reads records, runs nothing, and fails closed.

Evidence counts for a criterion only if it is intact, names the expected model, charter, template and data,
and has enough items. Whatever is missing, stale, too small, not finite or contradictory fails it, in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trueward.charter import Charter, Criterion
from trueward.core.errors import ConfigError, EvidenceError, nearest
from trueward.core.hashing import short
from trueward.registry.evidence import Evidence, Metric, read_evidence
from trueward.registry.store import Record

__all__ = ["CriterionResult", "Verdict", "decide"]

SCHEMA = "trueward.verdict/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class CriterionResult:
    """How one criterion came out. Figures are None where no evidence counted."""

    id: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    bound: str
    """The end of the interval that was compared: value, low or high."""
    threshold: float
    comparison: str
    n: int | None
    passed: bool
    reason: str
    source: str | None
    """Id of the evidence record."""
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The gate's decision on one model, with everything it depends on."""

    passed: bool
    profile: str
    charter: str
    subject: str
    reward_model: str | None
    template: str
    data: Mapping[str, str]
    criteria: tuple[CriterionResult, ...]
    operating_point: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Ids of the evidence the decision rests on, sorted."""
        return tuple(sorted({result.source for result in self.criteria if result.source}))

    def body(self) -> dict[str, Any]:
        """The body to `put` as a verdict record, with `sources` among its parents."""
        return {"schema": SCHEMA, "name": "passed" if self.passed else "refused", **asdict(self)}


def decide(
    charter: Charter,
    profile: str,
    evidence: Sequence[Record],
    *,
    subject: str,
    data: Mapping[str, str],
    template: str,
    reward_model: str | None = None,
    operating_point: str = "",
) -> Verdict:
    """Hold the criteria of one profile against evidence. The same input gives the same verdict, in any order.

    Args:
        charter: the charter in force; evidence under another one is stale.
        profile: name of a gate in the charter, such as `testbed`.
        evidence: evidence records; those about other models are passed over.
        subject: content hash of the model to be released.
        data: every data set that may be measured on, name -> content hash now in force.
        template: chat template hash of the model to be released.
        reward_model: content hash of the reward model, for criteria that are about it.
        operating_point: the charter's, that the model is to be used under; empty is none.

    Raises:
        ConfigError: the charter has no such profile.
    """
    if profile not in charter.gates:
        raise ConfigError(f"the charter has no gate {profile!r}", remedy=nearest(profile, charter.gates))
    readable, broken = _read_all(evidence)
    expected = _Expected(
        models={"policy": subject, "reward_model": reward_model},
        charter=charter.hash,
        data=dict(data),
        template=template,
        operating_point=operating_point,
    )
    results = [*broken, *(_judge(criterion, readable, expected) for criterion in charter.gates[profile])]
    return Verdict(
        passed=all(result.passed for result in results),
        profile=profile,
        charter=charter.hash,
        subject=subject,
        reward_model=reward_model,
        template=template,
        data=dict(sorted(data.items())),
        criteria=tuple(results),
        operating_point=operating_point,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Expected:
    models: Mapping[str, str | None]
    charter: str
    data: Mapping[str, str]
    template: str
    operating_point: str


def _read_all(records: Sequence[Record]) -> tuple[dict[str, Evidence], list[CriterionResult]]:
    readable: dict[str, Evidence] = {}
    broken: list[CriterionResult] = []
    for record in sorted(records, key=lambda record: record.id):
        try:
            readable[record.id] = read_evidence(record)
        except EvidenceError as error:
            # What a changed record said cannot be known, so no criterion can be sure to be untouched by it.
            broken.append(
                CriterionResult(
                    id="evidence_intact",
                    metric="",
                    value=None,
                    low=None,
                    high=None,
                    bound="value",
                    threshold=0.0,
                    comparison="<=",
                    n=None,
                    passed=False,
                    reason=str(error),
                    source=None,
                    why="A decision rests on records that nobody changed.",
                )
            )
    return readable, broken


def _judge(criterion: Criterion, evidence: Mapping[str, Evidence], expected: _Expected) -> CriterionResult:
    model = expected.models[criterion.subject]
    named = criterion.subject.replace("_", " ")
    measured = {id_: item for id_, item in evidence.items() if criterion.metric in item.metrics}
    about = {id_: item for id_, item in measured.items() if item.subject.model == model}
    if model is None:
        return _failed(criterion, f"no {named} was named, so {criterion.metric} has no subject")
    if not measured:
        return _failed(criterion, f"no evidence holds {criterion.metric}")
    if not about:
        others = sorted({short(item.subject.model) for item in measured.values()})
        return _failed(
            criterion,
            f"{criterion.metric} was measured on {', '.join(others)}, not on this {named} {short(model)}",
        )
    stale = {id_: _staleness(item, expected) for id_, item in about.items()}
    fresh = [id_ for id_, reason in stale.items() if reason is None]
    if not fresh:
        reasons = sorted({f"{short(id_)} {reason}" for id_, reason in stale.items()})
        return _failed(criterion, f"the evidence is stale: {'; '.join(reasons)}")
    figures = {id_: about[id_].metrics[criterion.metric] for id_ in fresh}
    source = min(figures)
    if any(figure != figures[source] for figure in figures.values()):
        listed = ", ".join(
            f"{short(id_)} says {_shown(figure.value)}" for id_, figure in sorted(figures.items())
        )
        return _failed(criterion, f"the evidence contradicts itself: {listed}")
    return _compared(criterion, figures[source], source)


def _staleness(item: Evidence, expected: _Expected) -> str | None:
    if item.charter != expected.charter:
        return f"was measured under charter {short(item.charter)}, not {short(expected.charter)}"
    if item.template != expected.template:
        return f"used chat template {short(item.template)}, not {short(expected.template)}"
    if item.operating_point != expected.operating_point:
        return f"was measured under {_point(item.operating_point)}, not {_point(expected.operating_point)}"
    for name, digest in sorted(item.data.items()):
        if name not in expected.data:
            return f"used data {name!r}, which is not part of this release"
        if digest != expected.data[name]:
            return f"used version {short(digest)} of data {name!r}, not {short(expected.data[name])}"
    return None


def _point(name: str) -> str:
    return f"operating point {name!r}" if name else "no operating point"


def _compared(criterion: Criterion, metric: Metric, source: str) -> CriterionResult:
    ends = {"value": metric.value, "low": metric.low, "high": metric.high}
    figure = ends[criterion.bound]
    named = {"value": "value", "low": "lower end", "high": "upper end"}[criterion.bound]
    relation, threshold = criterion.comparison, criterion.threshold
    passed = False
    if metric.value is None:
        reason = f"{criterion.metric} could not be measured as a finite number"
    elif figure is None:
        reason = f"{criterion.metric} has no interval, and the criterion asks for its {named}"
    elif metric.n < criterion.min_n:
        reason = f"{metric.n} items are too few, {criterion.min_n} are needed"
    elif metric.low is not None and metric.high is not None and metric.low > metric.high:
        reason = f"the interval [{_shown(metric.low)}, {_shown(metric.high)}] is upside down"
    else:
        passed = figure >= threshold if relation == ">=" else figure <= threshold
        verb = "meets" if passed else "misses"
        # Two numbers that differ must not read as equal.
        alike = figure != threshold and _shown(figure) == _shown(threshold)
        seen = repr(figure) if alike else _shown(figure)
        reason = f"{named} {seen} {verb} {relation} {_shown(threshold)} on {metric.n} items"
    return _result(criterion, passed=passed, reason=reason, metric=metric, source=source)


def _failed(criterion: Criterion, reason: str) -> CriterionResult:
    return _result(criterion, passed=False, reason=reason, metric=None, source=None)


def _result(
    criterion: Criterion, *, passed: bool, reason: str, metric: Metric | None, source: str | None
) -> CriterionResult:
    return CriterionResult(
        id=criterion.id,
        metric=criterion.metric,
        value=metric.value if metric else None,
        low=metric.low if metric else None,
        high=metric.high if metric else None,
        bound=criterion.bound,
        threshold=criterion.threshold,
        comparison=criterion.comparison,
        n=metric.n if metric else None,
        passed=passed,
        reason=reason,
        source=source,
        why=criterion.why,
    )


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"
