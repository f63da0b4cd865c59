"""Charts of the performance page as SVG files: how cost grows. Both axes are logarithmic."""

from collections.abc import Sequence

import altair as alt
import vl_convert

from benchmarks.results import Line

__all__ = ["cost_chart", "growth_chart"]

_AXES = {
    "length": "tokens of a sequence",
    "group size": "completions of a prompt",
    "vocabulary": "words of the vocabulary",
}
# Readable on light and on dark paper.
_INK, _GRID, _COLOURS = "#7a7f87", "#9aa0a633", ["#3b7dd8", "#d9722e", "#3a9d6a"]


def _svg(chart: alt.Chart | alt.HConcatChart) -> str:
    config = {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {"labelColor": _INK, "titleColor": _INK, "gridColor": _GRID, "tickColor": _GRID,
                 "domainColor": _INK, "titleFontWeight": "normal"},
        "legend": {"labelColor": _INK, "title": None, "orient": "top"},
    }  # fmt: skip
    drawn: str = vl_convert.vegalite_to_svg({**chart.to_dict(), "config": config})
    return drawn


def _line(rows: Sequence[dict[str, object]], x: str, y: str, *, colour: bool) -> alt.Chart:
    scale = alt.Scale(type="log")
    encoded = {
        "x": alt.X(f"{x}:Q", scale=scale, title=x),
        "y": alt.Y(f"{y}:Q", scale=scale, title=y),
    }
    if colour:
        encoded["color"] = alt.Color("stage:N", scale=alt.Scale(range=_COLOURS))
    mark = alt.Chart(alt.InlineData(values=list(rows))).mark_line(point=True, color=_COLOURS[0])
    return mark.encode(**encoded).properties(width=300, height=200)


def cost_chart(line: Line) -> str:
    """Time and memory of one step along an axis."""
    x = _AXES[line.name.split("/")[1]]
    rows = [
        {x: point["value"], "seconds of a step": point["seconds"], "memory, MiB": point["memory_mib"]}
        for point in line.values["points"]
    ]
    return _svg(
        alt.hconcat(
            _line(rows, x, "seconds of a step", colour=False), _line(rows, x, "memory, MiB", colour=False)
        )
    )


def growth_chart(lines: Sequence[Line]) -> str:
    """Time and memory of the stages of data as files grow."""
    rows = [
        {
            "stage": line.name.split("/")[1],
            "records": line.values["records"],
            "seconds": line.values["seconds"],
            "memory, MiB": max(line.values["memory_mib"], 0.1),
        }
        for line in lines
    ]
    return _svg(
        alt.hconcat(
            _line(rows, "records", "seconds", colour=True), _line(rows, "records", "memory, MiB", colour=True)
        )
    )
