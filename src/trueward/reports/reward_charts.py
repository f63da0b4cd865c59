"""Charts of the reward model: calibration, and accuracy beside simple rules."""

import altair as alt

from trueward.reports.chart_style import Panel, absent, figure_row, inline, panel, tooltip
from trueward.reports.summary import RewardModel

__all__ = ["baselines_panel", "reliability_panel"]


def reliability_panel(model: RewardModel | None) -> Panel:
    """Predicted against observed agreement of the reward model."""
    title = "Does its confidence mean what it says?"
    if model is None:
        return absent("reliability", title, "No reward model was trained or evaluated in this run.")
    if not model.bins:
        return absent(
            "reliability", title, "The reward model's confidence was not compared with outcomes in this run."
        )
    rows = [
        {
            "confidence": b.confidence,
            "accuracy": b.accuracy,
            "n": b.n,
            "range": f"{b.low:.2f} to {b.high:.2f}",
        }
        for b in model.bins
    ]
    low = min(0.5, *(b.confidence for b in model.bins), *(b.accuracy for b in model.bins))
    scale = alt.Scale(domain=[low, 1], zero=False, nice=False)
    x = alt.X("confidence:Q", scale=scale, title="confidence", axis=alt.Axis(format="%", grid=True))
    y = alt.Y("accuracy:Q", scale=scale, title="how often it was right", axis=alt.Axis(format="%"))
    ideal = (
        alt.Chart(inline([{"at": low}, {"at": 1}]))
        .mark_line(strokeDash=[5, 5], color="var(--axis)", strokeWidth=1.5)
        .encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale))
    )
    gaps = (
        alt.Chart(inline(rows))
        .mark_rule(strokeWidth=2, color="var(--bad)", opacity=0.6)
        .encode(x=x, y=alt.Y("confidence:Q", scale=scale), y2="accuracy:Q")
    )
    line = alt.Chart(inline(rows)).mark_line(color="var(--reward)", strokeWidth=2).encode(x=x, y=y)
    size = alt.Size("n:Q", scale=alt.Scale(range=[40, 420], domainMin=0), legend=None)
    fields = [alt.Tooltip("range:N", title="confidence"), alt.Tooltip("accuracy:Q", format=".3f"), "n:Q"]
    dots = (
        alt.Chart(inline(rows))
        .mark_point(filled=True, color="var(--reward)", opacity=1)
        .encode(x=x, y=y, size=size, tooltip=fields)
    )
    caption = (
        f"On the dashed line confidence equals accuracy; larger dots hold more pairs. "
        f"Expected calibration error {model.ece:.3f}."
    )
    if model.invariance is not None:
        caption += f" Scored alone and in company, a text's score differs by at most {model.invariance:.2g}."
    return panel("reliability", title, caption, [ideal, gaps, line, dots], height=300)


def baselines_panel(model: RewardModel | None) -> Panel:
    """Held-out accuracy of the reward model beside simple rules."""
    title = "Is it better than a simple rule?"
    if model is None:
        return absent("baselines", title, "No reward model was trained or evaluated in this run.")
    rows = [figure_row(model.accuracy, name="reward model", role="model")]
    if model.gold_accuracy is not None:
        rows.append(figure_row(model.gold_accuracy, name="reward model, true order", role="model"))
    rows += [figure_row(baseline.accuracy, name=baseline.name, role="rule") for baseline in model.baselines]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=220)),
        tooltip=tooltip("name"),
    )
    x = alt.X("value:Q", title="pairs ordered rightly", axis=alt.Axis(format="%", grid=True, tickCount=5))
    whole = x.scale(domain=[0, 1])
    roles = alt.Scale(domain=["model", "rule"], range=["var(--reward)", "var(--quiet)"])
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.62}).encode(
        x=whole, color=alt.Color("role:N", scale=roles, legend=None)
    )
    ends = base.mark_rule(strokeWidth=1.5, color="var(--ink)").encode(x=alt.X("low:Q"), x2="high:Q")
    text = base.mark_text(align="left", dx=7, fontSize=12, fontWeight=600).encode(
        x=alt.X("high:Q"), text="shown:N"
    )
    chance = (
        alt.Chart(inline([{"at": 0.5}]))
        .mark_rule(strokeDash=[5, 5], color="var(--axis)")
        .encode(x=alt.X("at:Q"))
    )
    compared = "" if model.baselines else " No baseline was measured beside it."
    caption = f"{model.verdict or 'Held-out pairs; the dashed line is a coin.'}{compared}"
    return panel("baselines", title, caption, [bars, chance, ends, text], height=max(120, 58 * len(rows)))
