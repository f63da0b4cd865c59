"""The table in the terminal holds the figures with their intervals, and never markup from outside."""

from io import StringIO

from rich.console import Console

from tests.reports.example import bare, summary
from trueward.reports import stage_table


def printed(body: dict[str, object], width: int = 170) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(stage_table(body))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_figures_and_intervals() -> None:
    text = printed(summary())
    row = next(line for line in text.splitlines() if "dpo" in line)
    for figure in (
        "0.24 [0.19, 0.29]",
        "0.66 [0.64, 0.69]",
        "0.18 [0.16, 0.20]",
        "0.61 [0.55, 0.67]",
        "17.2",
    ):
        assert figure in row
    assert "win rate against sft by gold" in text


def test_absent_figures_are_a_dash_and_absent_columns_are_left_out() -> None:
    row = next(line for line in printed(summary()).splitlines() if "│ sft" in line)
    assert row.count("–") == 2
    assert "gold" not in printed(bare()) and "3.0" in printed(bare())


def test_markup_in_names_is_text() -> None:
    body = {**bare(), "title": "[red]x[/red] [/]"}
    assert "[red]x[/red] [/]" in printed(body)
