"""The table of stages: its columns and cells, once, for the terminal and for the page."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from trueward.reports.summary import Figure, StageSummary, Summary, read_summary

__all__ = ["Column", "columns", "score_names", "shown_seconds", "stage_table"]

_SCORES = ("gold", "reward", "helpful", "harmless", "honest")
_NAMES = {"kl": "KL", "win_rate": "win rate", "capability": "abilities kept"}


class Column(NamedTuple):
    """One column: its heading and each stage's figure, None where it was not measured."""

    heading: str
    cells: tuple[Figure | None, ...]

    @property
    def n(self) -> int | None:
        """The number of items, where it is the same for every stage."""
        counts = {figure.n for figure in self.cells if figure is not None}
        return counts.pop() if len(counts) == 1 else None


def score_names(summary: Summary) -> list[str]:
    """The scores that any stage has, in the order they are shown."""
    found = {name for stage in summary.stages for name in stage.scores}
    return [name for name in _SCORES if name in found] + sorted(found - set(_SCORES))


def columns(summary: Summary) -> list[Column]:
    """All columns that at least one stage has a figure in."""
    made = [
        Column(name, tuple(stage.scores.get(name) for stage in summary.stages))
        for name in score_names(summary)
    ]
    for name in ("kl", "win_rate", "capability"):
        made.append(Column(_NAMES[name], tuple(getattr(stage, name) for stage in summary.stages)))
    for name in ("harmful", "benign"):
        cells = tuple(getattr(stage.refusal, name) if stage.refusal else None for stage in summary.stages)
        made.append(Column(f"refuses {name}", cells))
    return [column for column in made if any(column.cells)]


def stage_table(summary: Mapping[str, Any]) -> Table:
    """Stage by scores, KL and win rate with 95 % intervals, and seconds, for the terminal.

    Raises:
        EvidenceError: the summary does not fit its schema.
    """
    checked = read_summary(summary)
    names = {*score_names(checked), "KL", "win rate"}
    shown = [column for column in columns(checked) if column.heading in names]
    # Eight figures with intervals have to fit into 80 columns, so frame and padding are the least there is.
    table = Table(
        title=Text(checked.title),
        caption=_caption(checked),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        min_width=60,
    )
    table.add_column("stage", style="bold", overflow="fold")
    for column in shown:
        table.add_column(column.heading, justify="right", overflow="fold")
    table.add_column("sec", justify="right")
    for index, stage in enumerate(checked.stages):
        cells = [_cell(column.cells[index]) for column in shown]
        table.add_row(Text(stage.stage), *cells, Text(shown_seconds(stage.seconds)))
    return table


def shown_seconds(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def _cell(figure: Figure | None) -> Text:
    if figure is None:
        return Text("–", style="dim")
    return Text.assemble(f"{figure.value:.2f}\n", (f"[{figure.low:.2f},\n{figure.high:.2f}]", "dim"))


def _caption(summary: Summary) -> Text:
    against = {_comparison(stage) for stage in summary.stages if stage.win_rate}
    counts = sorted({figure.n for stage in summary.stages for figure in stage.scores.values()})
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    parts = [f"95 % intervals over {items} items", "KL in nats per completion", *sorted(against)]
    return Text("; ".join(parts))


def _comparison(stage: StageSummary) -> str:
    by = f" by {stage.win_judge}" if stage.win_judge else ""
    return f"win rate against {stage.win_against}{by}"
