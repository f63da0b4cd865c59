"""How every chart looks, and what a chart is: a title, a sentence, and a specification or a reason why not.

Colours are CSS variables, which Vega passes on untouched, so that one drawing serves light, dark and paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from trueward.reports.summary import Figure

__all__ = ["Panel", "absent", "figure_row", "inline", "panel", "stage_scale", "tooltip"]

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
_STAGES = {"base", "sft", "dpo", "ppo"}
_OTHERS = 4

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "padding": {"left": 4, "top": 6, "right": 10, "bottom": 4},
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink-2)",
        "titleColor": "var(--ink-2)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--axis)",
        "tickColor": "var(--axis)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 5,
        "ticks": False,
        "domain": False,
    },
    "axisX": {"grid": False, "domain": True, "labelAngle": 0},
    "legend": {
        "labelColor": "var(--ink-2)",
        "titleColor": "var(--ink-2)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "top",
        "title": None,
        "symbolStrokeWidth": 2.5,
        "symbolOpacity": 1,
        "offset": 8,
    },
    "text": {"color": "var(--ink-2)", "fontSize": 11},
    "rule": {"color": "var(--axis)"},
    "line": {"strokeCap": "round", "strokeJoin": "round"},
}


class Panel(NamedTuple):
    """One picture of the report. Exactly one of `spec` and `absent` is set."""

    id: str
    title: str
    caption: str
    spec: dict[str, Any] | None
    absent: str | None
    wide: bool


def panel(
    id_: str, title: str, caption: str, layers: Sequence[alt.Chart], *, height: int = 250, wide: bool = False
) -> Panel:
    """A panel with a chart as wide as its place on the page.

    Args:
        id_: used in the page's element ids.
        title: what is drawn.
        caption: how to read it, in a sentence.
        layers: what is drawn, from back to front.
        height: pixels of the plotting area.
        wide: whether it takes a whole row.
    """
    made = alt.layer(*layers).to_dict()
    made["width"], made["height"] = "container", height
    made["config"] = CONFIG
    made["autosize"] = {"type": "fit-x", "contains": "padding"}
    made["description"] = f"{title}. {caption}"
    return Panel(id_, title, caption, made, None, wide)


def absent(id_: str, title: str, why: str) -> Panel:
    """A panel that says in a sentence what was not measured, and why."""
    return Panel(id_, title, "", None, why, False)


def _colour(stage: str, index: int) -> str:
    """The colour of a stage: fixed for the known ones, by position for others."""
    return f"var(--{stage})" if stage in _STAGES else f"var(--other-{index % _OTHERS})"


def stage_scale(stages: Sequence[str]) -> alt.Scale:
    """Stage names to their colours, in the order of the run."""
    return alt.Scale(domain=list(stages), range=[_colour(stage, i) for i, stage in enumerate(stages)])


def figure_row(figure: Figure, **more: str) -> dict[str, str | float | int]:
    """A row of chart data: the figure with its interval, and as a tooltip says it."""
    interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
    return {
        **more,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "n": figure.n,
        "shown": f"{figure.value:.2f}",
        "interval": interval,
    }


def inline(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Chart data that lies in the page."""
    return alt.InlineData(values=[dict(row) for row in rows])


def tooltip(*names: str) -> list[alt.Tooltip]:
    """What a pointer shows: the named fields of a `figure_row`, the figure, its interval and its items."""
    fields = [alt.Tooltip(f"{name}:N") for name in names]
    number = alt.Tooltip("value:Q", format=".3f")
    return [
        *fields,
        number,
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("n:Q", title="items"),
    ]
