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


def test_figures_and_intervals_stand_whole_in_80_columns() -> None:
    text = printed(summary(), width=80)
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(" dpo"))
    value, low, high = (lines[start + offset].split() for offset in range(3))
    assert value == ["dpo", "0.24", "0.66", "0.97", "0.71", "0.18", "0.61", "17.2"]
    assert (low[0], high[0]) == ("[0.19,", "0.29]")
    assert (low[-1], high[-1]) == ("[0.55,", "0.67]")
    assert "…" not in text and max(map(len, lines)) <= 80
    assert "win rate against sft by gold" in " ".join(text.split())


def test_absent_figures_are_a_dash_and_absent_columns_are_left_out() -> None:
    row = next(line for line in printed(summary()).splitlines() if line.startswith(" sft"))
    assert row.count("–") == 2
    assert "gold" not in printed(bare()) and "3.0" in printed(bare())


def test_markup_in_names_is_text() -> None:
    body = {**bare(), "title": "[red]x[/red] [/]"}
    assert "[red]x[/red] [/]" in printed(body)
