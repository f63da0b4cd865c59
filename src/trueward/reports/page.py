"""The report: one HTML file that works offline, drawn from a summary alone.

Vega is embedded once and may run only by its hash; a Content-Security-Policy forbids every other script and
every request. All text is escaped by the template, chart data travels as inert JSON.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import altair
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trueward.core.files import write_text
from trueward.reports.evaluation_charts import (
    category_panels,
    refusal_panel,
    score_panels,
    win_panels,
)
from trueward.reports.lineage import lineage_svg
from trueward.reports.reward_charts import baselines_panel, reliability_panel
from trueward.reports.summary import Figure, Summary, read_summary
from trueward.reports.table import Column, columns, shown_seconds
from trueward.reports.training_charts import dpo_panels, look_panels, ppo_panels

__all__ = ["render_report"]

_ASSETS = Path(__file__).with_name("assets")
_COLOURED = {"base", "sft", "dpo", "ppo"}
_SECTIONS = (
    ("scores", "Scores"),
    ("refusals", "Refusals"),
    ("reward", "Reward model"),
    ("training", "Training"),
    ("wins", "Head to head"),
    ("samples", "Samples"),
    ("gate", "Gate"),
    ("lineage", "Lineage"),
)


class _Tile(NamedTuple):
    name: str
    value: str
    detail: str


def render_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the report of one run as a single HTML file.

    Args:
        summary: schema trueward.summary/1, JSON values.
        path: the file; replaced atomically if it exists.

    Raises:
        EvidenceError: the summary does not fit its schema.
        StorageError: the disk refuses; an old report is untouched.
    """
    checked = read_summary(summary)
    script = (_ASSETS / "page.js").read_text(encoding="utf-8")
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    gate = checked.gate
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            s=checked,
            policy=_policy([_library(), script], style),
            style=Markup(style),
            library=Markup(_library()),
            script=Markup(script),
            sections=_SECTIONS,
            failed=[c.metric.replace("_", " ") or c.id for c in gate.criteria if not c.passed]
            if gate
            else [],
            tiles=_tiles(checked),
            columns=columns(checked),
            score_panels=score_panels(checked),
            refusal_panels=[refusal_panel(checked), *category_panels(checked)],
            reward_panels=[reliability_panel(checked.reward_model), baselines_panel(checked.reward_model)],
            training_panels=[*ppo_panels(checked), *dpo_panels(checked), *look_panels(checked)],
            win_panels=win_panels(checked),
            lineage=lineage_svg(checked.lineage) if checked.lineage.nodes else Markup(""),
            extras=_extras(checked),
        )
    )
    write_text(path, text)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = _number
    environment.filters["seconds"] = shown_seconds
    environment.filters["embedded"] = _embedded
    environment.filters["known"] = lambda stage: stage if stage in _COLOURED else ""
    environment.filters["plain"] = lambda value: f"{value:g}"
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment


def _number(value: float, digits: int) -> str:
    # A typographic minus lines up with the plus and cannot be read as a dash.
    return f"{value:.{digits}f}".replace("-", "−")


def _embedded(value: object) -> Markup:
    """JSON that cannot end its script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, of the Vega-Lite version that Altair writes."""
    wanted = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    # The stubs ask for a snippet that the function itself can do without.
    library: str = vl_convert.javascript_bundle(vl_version=wanted)  # type: ignore[call-arg]
    for forbidden in ("</script", "<!--", "\r", "\0"):
        assert forbidden not in library.lower(), (
            f"the Vega bundle holds {forbidden!r}, which HTML would misread"
        )
    return library


def _policy(scripts: list[str], style: str) -> str:
    allowed = " ".join(_source(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _extras(summary: Summary) -> list[Column]:
    names = dict.fromkeys(name for stage in summary.stages for name in stage.extra)
    return [Column(name, tuple(stage.extra.get(name) for stage in summary.stages)) for name in names]


def _tiles(summary: Summary) -> list[_Tile]:
    """The few figures that sum the run up: those of the judged stage, else of the last."""
    stage = next(
        (s for s in summary.stages if summary.gate and s.stage == summary.gate.subject), summary.stages[-1]
    )
    names = {"gold": "True reward", "reward": "Mean reward"}
    tiles = [_tile(f"{names[n]} of {stage.stage}", stage.scores[n]) for n in names if n in stage.scores]
    if stage.win_rate:
        judged = f" by {stage.win_judge}" if stage.win_judge else ""
        tiles.append(_tile(f"{stage.stage} beats {stage.win_against}{judged}", stage.win_rate))
    if stage.refusal:
        tiles.append(_tile("Harmful refused", stage.refusal.harmful))
        tiles.append(_tile("Look-alikes refused", stage.refusal.benign))
    if stage.kl:
        tiles.append(_tile("KL, nats", stage.kl))
    if summary.reward_model:
        accuracy = summary.reward_model.gold_accuracy or summary.reward_model.accuracy
        tiles.append(_tile("Reward accuracy", accuracy))
    return tiles


def _tile(name: str, figure: Figure) -> _Tile:
    return _Tile(
        name,
        _number(figure.value, 2),
        f"[{_number(figure.low, 2)}, {_number(figure.high, 2)}] · n {figure.n}",
    )
