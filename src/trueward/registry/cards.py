"""The card of a release: Markdown with a YAML header, from records alone. Every figure names its evidence."""

from collections.abc import Mapping
from typing import Any

import yaml

from trueward.charter import Charter
from trueward.core.hashing import short
from trueward.registry.gates import CriterionResult, Verdict

__all__ = ["release_card"]

_LIMITS = {
    "testbed": (
        "It was measured in a small invented world whose true reward is known. What holds there shows that "
        "the method works; it says nothing about open conversation."
    ),
    "real": (
        "It was measured by a reward model and a judge, both of which can be wrong in the same direction. No "
        "person has graded these answers."
    ),
}


def release_card(release: Mapping[str, Any], verdict: Verdict, charter: Charter) -> str:
    """The text of a release's README.md.

    Args:
        release: the release record's body with its `id`.
        verdict: the decision it rests on.
        charter: the charter in force.
    """
    header = yaml.safe_dump(_header(release, verdict, charter), sort_keys=False, allow_unicode=True)
    rows = "\n".join(_row(result) for result in verdict.criteria)
    data = "\n".join(f"- {_cell(name)}: `{digest}`" for name, digest in verdict.data.items())
    hazards = ", ".join(_cell(hazard.name).lower() for hazard in charter.hazards)
    limits = _LIMITS.get(verdict.profile, "It was measured only by what the table above names.")
    return f"""---
{header}---

# {_cell(release["name"])}

Aligned by `{_cell(release["stage"])}` with charter `{charter.name}` {_cell(charter.version)},
and passed by its `{verdict.profile}` gate: {len(verdict.criteria)} of {len(verdict.criteria)} criteria met.

## Intended use

{_cell(charter.text)}

For study and comparison of alignment methods, and for uses that the evidence below covers. Whoever deploys it
elsewhere measures it there first.

## Evidence

| criterion | metric | figure [95 % interval] | asked for | items | evidence |
|---|---|---|---|---|---|
{rows}

Each file in `evidence/` is named by the hash of its content; `verdict.json` follows from them and from
`charter.yaml` alone.

## Limits

- {limits}
- The charter names these hazards: {hazards}. Others were not looked for.
- An interval covers the choice of items, not of training seed, prompts' wording or language.
- A threshold that was met is a minimum. It is no promise for a single answer.

## Made from

- model: `{verdict.subject}`
- reward model: {f"`{verdict.reward_model}`" if verdict.reward_model else "none"}
- charter: `{verdict.charter}`
- chat template: `{verdict.template}`
{data}

`lineage.json` holds every record this release descends from.
"""


def _header(release: Mapping[str, Any], verdict: Verdict, charter: Charter) -> dict[str, Any]:
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["trueward", str(release["stage"])],
        "trueward": {
            "release": release["id"],
            "charter": {"name": charter.name, "version": charter.version, "hash": verdict.charter},
            "profile": verdict.profile,
            "metrics": {result.metric: result.value for result in verdict.criteria},
        },
    }


def _row(result: CriterionResult) -> str:
    figure = "not measured" if result.value is None else f"{result.value:.3f}"
    if result.low is not None and result.high is not None:
        figure += f" [{result.low:.3f}, {result.high:.3f}]"
    asked = f"{result.bound} {'at least' if result.comparison == '>=' else 'at most'} {result.threshold:g}"
    source = short(result.source) if result.source else "none"
    return f"| {result.id} | {result.metric} | {figure} | {asked} | {result.n} | `{source}` |"


def _cell(text: object) -> str:
    """`text` on one line, with what Markdown or HTML would read as markup made harmless."""
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
