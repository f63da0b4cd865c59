"""Charts of what was measured on finished models: scores, refusals, wins."""

import altair as alt

from trueward.reports.chart_style import Panel, absent, figure_row, inline, panel, stage_scale, tooltip
from trueward.reports.summary import CategoryRate, Summary, WinCell
from trueward.reports.table import score_names

__all__ = [
    "category_panels",
    "refusal_panel",
    "score_panels",
    "win_panels",
]

_TILES = [f"var(--d{i})" for i in range(7)]
PARTS = ("helpful", "harmless", "honest")
_READ = "Dots are means, bars their 95 % intervals"
_KINDS = {
    "harmful": ("Harmful requests", "refused; more is better"),
    "benign": ("Harmless look-alikes", "refused; less is better"),
    "wrapper": (
        "Jailbreak wrappers",
        "still refused in framings never trained on; more is better",
    ),
}
_SCORE_TITLES = {
    "gold": ("True reward", "By the world's own rules, which no model sees"),
    "reward": (
        "Reward model's score",
        "On held-out prompts, by the model that was trained to judge; not the truth",
    ),
}


def score_panels(summary: Summary) -> list[Panel]:
    """Each score by stage; helpful, harmless and honest share one picture."""
    stages = [stage.stage for stage in summary.stages]
    names = score_names(summary)
    panels = [_score_panel(summary, name) for name in names if name not in PARTS]
    parts = [name for name in PARTS if name in names]
    if parts:
        panels.append(_parts_panel(summary, stages, parts))
    elif summary.kind == "real":
        why = "On real data nobody graded the answers for these three, so there is nothing to draw."
        panels.append(absent("parts", "Helpful, harmless, honest", why))
    return panels or [absent("no-scores", "Scores by stage", "No stage was scored in this run.")]


def _score_panel(summary: Summary, name: str) -> Panel:
    rows = [
        figure_row(stage.scores[name], stage=stage.stage) for stage in summary.stages if name in stage.scores
    ]
    title, gloss = _SCORE_TITLES.get(
        name, (name.replace("_", " ").capitalize(), "Mean over held-out prompts")
    )
    stages = [stage.stage for stage in summary.stages]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("stage:N", sort=stages, title=None),
        color=alt.Color("stage:N", scale=stage_scale(stages), legend=None),
        tooltip=tooltip("stage"),
    )
    value = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=24), axis=alt.Axis(tickCount=6))
    path = (
        alt.Chart(inline(rows))
        .mark_line(color="var(--axis)", strokeWidth=1.5)
        .encode(x=alt.X("stage:N", sort=stages), y=value)
    )
    bars = base.mark_rule(strokeWidth=5, opacity=0.35, strokeCap="round").encode(
        y=alt.Y("low:Q"), y2="high:Q"
    )
    dots = base.mark_point(filled=True, size=130, opacity=1).encode(y=value)
    text = base.mark_text(align="left", dx=11, fontSize=13, fontWeight=600).encode(y=value, text="shown:N")
    caption = f"{gloss}. {_READ}."
    return panel(f"score-{name}", title, caption, [path, bars, dots, text])


def _parts_panel(summary: Summary, stages: list[str], parts: list[str]) -> Panel:
    rows = [
        figure_row(stage.scores[part], stage=stage.stage, part=part)
        for stage in summary.stages
        for part in parts
        if part in stage.scores
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("part:N", sort=parts, title=None),
        xOffset=alt.XOffset("stage:N", sort=stages),
        color=alt.Color("stage:N", scale=stage_scale(stages)),
        tooltip=tooltip("stage", "part"),
    )
    value = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(tickCount=6))
    bars = base.mark_rule(strokeWidth=5, opacity=0.35, strokeCap="round").encode(
        y=alt.Y("low:Q"), y2="high:Q"
    )
    dots = base.mark_point(filled=True, size=95, opacity=1).encode(y=value)
    text = base.mark_text(dy=-9).encode(y=alt.Y("high:Q"), text="shown:N", color=alt.value("var(--ink-2)"))
    return panel("parts", "Helpful, harmless, honest", f"{_READ}; 1 is best.", [bars, dots, text])


def refusal_panel(summary: Summary) -> Panel:
    """Refusal of harmful requests against refusal of harmless ones, with the region the gate asks for."""
    title = "Refusing what is harmful, serving what is not"
    rows = []
    for stage in summary.stages:
        if stage.refusal is not None:
            harmful, benign = stage.refusal.harmful, stage.refusal.benign
            row = figure_row(harmful, stage=stage.stage, shown_benign=f"{benign.value:.3f}")
            rows.append({**row, "benign": benign.value, "benign_low": benign.low, "benign_high": benign.high})
    if not rows:
        return absent(
            "refusal",
            title,
            "Refusals were not measured: this run evaluated no harmful or look-alike requests.",
        )
    stages = [stage.stage for stage in summary.stages]
    whole = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X(
        "benign:Q", scale=whole, title="harmless look-alikes refused", axis=alt.Axis(format="%", grid=True)
    )
    y = alt.Y("value:Q", scale=whole, title="harmful requests refused", axis=alt.Axis(format="%"))
    shade = alt.Color("stage:N", scale=stage_scale(stages), legend=None)
    base = alt.Chart(inline(rows)).encode(color=shade)
    path = (
        alt.Chart(inline(rows))
        .mark_line(color="var(--axis)", strokeWidth=1.5)
        .encode(x=x, y=y, order="index:Q")
    )
    goal = _goal(summary)
    layers = [_goal_layer(goal)] if goal else []
    layers += [
        path.transform_window(index="row_number()"),
        base.mark_rule(strokeWidth=4, opacity=0.3, strokeCap="round").encode(
            x=alt.X("benign:Q"), y=alt.Y("low:Q"), y2="high:Q"
        ),
        base.mark_rule(strokeWidth=4, opacity=0.3, strokeCap="round").encode(
            x=alt.X("benign_low:Q"), x2="benign_high:Q", y=alt.Y("value:Q")
        ),
        base.mark_point(filled=True, size=150, opacity=1).encode(
            x=x, y=y, tooltip=[*tooltip("stage"), alt.Tooltip("shown_benign:N", title="benign refused")]
        ),
    ]
    # Names stand above and below in turns, because neighbours in a run often lie close together.
    for first, dy in ((0, -13), (1, 17)):
        text = alt.Chart(inline(rows[first::2])).mark_text(
            align="left", dx=11, dy=dy, fontSize=13, fontWeight=600
        )
        layers.append(text.encode(x=x, y=y, text="stage:N", color=shade))
    region = " The shaded corner is what the gate asks for." if goal else ""
    caption = f"Up and to the left is better.{region} Crosses are 95 % intervals."
    return panel("refusal", title, caption, layers, height=360)


def _goal(summary: Summary) -> tuple[float, float] | None:
    criteria = {} if summary.gate is None else {result.metric: result for result in summary.gate.criteria}
    harmful, benign = criteria.get("harmful_refusal"), criteria.get("benign_refusal")
    return (harmful.threshold, benign.threshold) if harmful and benign else None


def _goal_layer(goal: tuple[float, float]) -> alt.Chart:
    corner = {"left": 0, "right": goal[1], "bottom": goal[0], "top": 1}
    chart: alt.Chart = alt.Chart(inline([corner])).mark_rect(color="var(--good)", opacity=0.13)
    placed: alt.Chart = chart.encode(x=alt.X("left:Q"), x2="right:Q", y=alt.Y("bottom:Q"), y2="top:Q")
    return placed


def category_panels(summary: Summary) -> list[Panel]:
    """Refusal rates by category, one picture for each kind of request."""
    found: dict[str, list[tuple[str, CategoryRate]]] = {kind: [] for kind in _KINDS}
    for stage in summary.stages:
        for rate in stage.refusal.by_category if stage.refusal else ():
            found[rate.kind].append((stage.stage, rate))
    if not any(found.values()):
        return [
            absent(
                "categories",
                "Refusals by category",
                "No categories were recorded with the refusals of this run.",
            )
        ]
    stages = [stage.stage for stage in summary.stages]
    return [_category_panel(kind, rates, stages) for kind, rates in found.items() if rates]


def _category_panel(kind: str, rates: list[tuple[str, CategoryRate]], stages: list[str]) -> Panel:
    title, gloss = _KINDS[kind]
    categories = list(dict.fromkeys(rate.category for _, rate in rates))
    seen = [stage for stage in stages if any(stage == name for name, _ in rates)]
    rows = [figure_row(rate, stage=stage, category=rate.category.replace("_", " ")) for stage, rate in rates]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y(
            "category:N",
            sort=[category.replace("_", " ") for category in categories],
            title=None,
            axis=alt.Axis(labelLimit=220),
            scale=alt.Scale(paddingInner=0.35, paddingOuter=0.2),
        ),
        yOffset=alt.YOffset("stage:N", sort=seen),
        color=alt.Color("stage:N", scale=stage_scale(seen)),
        tooltip=tooltip("stage", "category"),
    )
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", grid=True, tickCount=5),
    )
    bars = base.mark_bar(opacity=0.85, cornerRadiusEnd=2).encode(x=x)
    ends = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q"), x2="high:Q", color=alt.value("var(--ink)")
    )
    height = max(110, len(categories) * (11 * len(seen) + 14))
    return panel(f"category-{kind}", title, f"Share {gloss}.", [bars, ends], height=height)


def win_panels(summary: Summary) -> list[Panel]:
    """One heat map of win rates for each judge."""
    if not summary.win_matrix:
        return [
            absent(
                "wins",
                "Who beats whom",
                "Answers of the stages were not compared with each other in this run.",
            )
        ]
    judges = list(dict.fromkeys(cell.judge for cell in summary.win_matrix))
    order = [stage.stage for stage in summary.stages]
    return [
        _win_panel(i, judge, [cell for cell in summary.win_matrix if cell.judge == judge], order)
        for i, judge in enumerate(judges)
    ]


def _win_panel(index: int, judge: str, cells: list[WinCell], order: list[str]) -> Panel:
    rows = [figure_row(cell, row=cell.row, column=cell.column) for cell in cells]
    names = order + [name for cell in cells for name in (cell.row, cell.column) if name not in order]
    names = [name for name in dict.fromkeys(names) if any(name in (cell.row, cell.column) for cell in cells)]
    steps = alt.Scale(type="threshold", domain=[0.3, 0.4, 0.47, 0.53, 0.6, 0.7], range=_TILES)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("column:N", sort=names, title="against", axis=alt.Axis(orient="top", domain=False)),
        y=alt.Y("row:N", sort=names, title=None),
        tooltip=tooltip("row", "column"),
    )
    tiles = base.mark_rect(cornerRadius=5, stroke="var(--panel)", strokeWidth=3).encode(
        color=alt.Color("value:Q", scale=steps, legend=None)
    )
    value = base.mark_text(fontSize=15, fontWeight=600, dy=-6, color="var(--on-tile)").encode(text="shown:N")
    interval = base.mark_text(fontSize=10.5, dy=11, color="var(--on-tile)").encode(text="interval:N")
    caption = f"How often the row's answer beats the column's, judged by {judge}; a tie counts half."
    return panel(
        f"wins-{index}",
        f"Who beats whom, by {judge}",
        caption,
        [tiles, value, interval],
        height=58 * len(names),
    )
