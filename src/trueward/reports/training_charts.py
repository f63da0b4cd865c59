"""Charts of training: PPO's proxy and true reward against KL, DPO's margins and moves, held-out figures."""

from collections.abc import Sequence

import altair as alt

from trueward.reports.chart_style import Panel, absent, inline, panel
from trueward.reports.summary import DpoPoint, LookPoint, PpoPoint, Summary

__all__ = ["dpo_panels", "look_panels", "ppo_panels"]

_MEASURES = alt.Scale(domain=["proxy", "true"], range=["var(--proxy)", "var(--gold)"])
_DATA = alt.Scale(domain=["training", "held out"], range=["var(--proxy)", "var(--gold)"])
_SIDES = alt.Scale(domain=["chosen", "rejected"], range=["var(--good)", "var(--bad)"])


def ppo_panels(summary: Summary) -> list[Panel]:
    """Reward against KL, with the limit on KL and without it."""
    curves = summary.curves
    title, free = "PPO within its KL budget", "PPO with nothing to hold it"
    bounded = (
        _ppo_panel("ppo", title, curves.ppo)
        if curves.ppo
        else absent("ppo", title, "PPO was not part of this run, so there is no curve of reward against KL.")
    )
    why = "No PPO without a KL penalty was run, so what happens without one is not shown."
    unbounded = (
        _ppo_panel("ppo-unbounded", free, curves.ppo_unbounded)
        if curves.ppo_unbounded
        else absent("ppo-unbounded", free, why)
    )
    return [bounded, unbounded, *_constraint_panels(curves.ppo)]


def _constraint_panels(points: Sequence[PpoPoint]) -> list[Panel]:
    """Slack of the constraint, and lambda; none where nothing was constrained."""
    rows = [
        {"step": p.step, "slack": p.slack, "price": p.price}
        for p in points
        if p.slack is not None and p.price is not None
    ]
    if not rows:
        return []
    base = alt.Chart(inline(rows)).encode(x=alt.X("step:Q", title="iteration", axis=alt.Axis(tickCount=6)))
    zero = alt.Chart(inline([{"at": 0}])).mark_rule(strokeDash=[5, 5]).encode(y=alt.Y("at:Q"))
    missed = sum(row["slack"] < 0 for row in rows)
    slack = base.mark_line(strokeWidth=2.5, color="var(--good)").encode(
        y=alt.Y("slack:Q", title="bound - mean cost", axis=alt.Axis(tickCount=6)),
        tooltip=["step:Q", alt.Tooltip("slack:Q", format=".3f")],
    )
    price = base.mark_line(strokeWidth=2.5, color="var(--bad)").encode(
        y=alt.Y("price:Q", title="lambda", axis=alt.Axis(tickCount=6)),
        tooltip=["step:Q", alt.Tooltip("price:Q", format=".3f")],
    )
    caption = f"Below 0 the mean cost is above its bound: so it was in {missed} of {len(rows)} iterations."
    why = "What a unit of cost costs in reward: it rises while the bound is missed and falls while it is met."
    return [
        panel("ppo-slack", "Slack of PPO's constraint", caption, [zero, slack]),
        panel("ppo-lambda", "Price of cost in PPO", why, [price]),
    ]


def _ppo_panel(id_: str, title: str, points: Sequence[PpoPoint]) -> Panel:
    rows = [{"step": p.step, "kl": p.kl, "measure": "proxy", "value": p.reward} for p in points]
    rows += [
        {"step": p.step, "kl": p.kl, "measure": "true", "value": p.gold} for p in points if p.gold is not None
    ]
    known = any(row["measure"] == "true" for row in rows)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "kl:Q", title="KL from the reference, nats per completion", axis=alt.Axis(tickCount=6, grid=True)
        ),
        y=alt.Y("value:Q", title="mean reward", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6)),
        color=alt.Color("measure:N", scale=_MEASURES),
        order=alt.Order("step:Q"),
        tooltip=[
            "measure:N",
            "step:Q",
            alt.Tooltip("kl:Q", format=".3f"),
            alt.Tooltip("value:Q", format=".3f"),
        ],
    )
    caption = (
        f"{_course(points)} The proxy is what the reward model says, true is what the world's rules say."
        if known
        else "The proxy is the reward model's own score. The truth was not measured, so it is not drawn."
    )
    return panel(
        id_, title, caption, [base.mark_line(strokeWidth=2.5), base.mark_point(filled=True, size=40)]
    )


def _course(points: Sequence[PpoPoint]) -> str:
    """What the two curves did, from their first to their last point."""
    gold = [point.gold for point in points if point.gold is not None]
    proxy = points[-1].reward - points[0].reward
    truth = gold[-1] - gold[0]
    text = f"From first to last iteration the proxy changed by {proxy:+.2f} and the truth by {truth:+.2f}."
    return text.replace("-", "−")


def dpo_panels(summary: Summary) -> list[Panel]:
    """Margins, and how far the log-probabilities of both sides moved."""
    points = summary.curves.dpo
    margins, moved = "DPO margins", "DPO moves both sides"
    if not points:
        why = "DPO was not part of this run, so there is nothing to draw."
        return [absent("dpo-margins", margins, why), absent("dpo-displacement", moved, why)]
    return [_margins_panel(margins, points), _displacement_panel(moved, points)]


def _margins_panel(title: str, points: Sequence[DpoPoint]) -> Panel:
    rows = [{"step": p.step, "margin": p.margins} for p in points]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
        y=alt.Y("margin:Q", title="margin, nats", axis=alt.Axis(tickCount=6)),
        tooltip=["step:Q", alt.Tooltip("margin:Q", format=".3f")],
    )
    caption = "How much more the implicit reward of the chosen answer rises than that of the rejected one."
    area = base.mark_area(color="var(--dpo)", opacity=0.15)
    return panel("dpo-margins", title, caption, [area, base.mark_line(color="var(--dpo)", strokeWidth=2.5)])


def _displacement_panel(title: str, points: Sequence[DpoPoint]) -> Panel:
    rows = [{"step": p.step, "side": "chosen", "change": p.chosen_per_token_change} for p in points]
    rows += [{"step": p.step, "side": "rejected", "change": p.rejected_per_token_change} for p in points]
    lines = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2.5)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
            y=alt.Y("change:Q", title="change of log-prob, nats per token", axis=alt.Axis(tickCount=6)),
            color=alt.Color("side:N", scale=_SIDES),
            tooltip=["side:N", "step:Q", alt.Tooltip("change:Q", format=".3f")],
        )
    )
    zero = alt.Chart(inline([{"at": 0}])).mark_rule(strokeDash=[5, 5]).encode(y=alt.Y("at:Q"))
    fell = points[-1].chosen_per_token_change < 0
    fate = "has become less likely too" if fell else "has not become less likely"
    caption = f"A margin can grow while both answers become less likely. Here the chosen answer {fate}."
    return panel("dpo-displacement", title, caption, [zero, lines])


def look_panels(summary: Summary) -> list[Panel]:
    """Held-out figures beside those of training, stage by stage; none where nobody looked."""
    points = summary.curves.looks
    stages = dict.fromkeys(point.stage for point in points)
    return [_look_panel(stage, [point for point in points if point.stage == stage]) for stage in stages]


def _look_panel(stage: str, points: Sequence[LookPoint]) -> Panel:
    figure = points[0].figure
    rows = [{"step": p.step, "data": "held out", "value": p.held_out} for p in points]
    rows += [
        {"step": p.step, "data": "training", "value": p.training} for p in points if p.training is not None
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
        y=alt.Y("value:Q", title=f"mean {figure}", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6)),
        color=alt.Color("data:N", scale=_DATA),
        tooltip=["data:N", "step:Q", alt.Tooltip("value:Q", format=".3f")],
    )
    name = stage.replace("_", " ")
    worse = "stops falling" if figure == "loss" else "stops rising"
    caption = (
        f"Where the held-out {figure} {worse} while that of training goes on, the model learns its items by "
        "heart. A training figure is that of one batch; the held-out items are always the same."
    )
    layers = [base.mark_line(strokeWidth=2.5), base.mark_point(filled=True, size=40)]
    return panel(f"looks-{stage}", f"Held-out {figure} of {name}", caption, layers)
