"""The page of real collections: its figures are those of the lines; what was not measured is left out."""

from pathlib import Path

import pytest
from benchmarks.real_data import TASKS
from benchmarks.real_data_page import PAGE, page
from benchmarks.results import Line, read_lines

RESULTS = Path(__file__).parents[2] / "benchmarks" / "real_data.json"


def test_the_page_is_what_the_program_writes() -> None:
    lines = read_lines(RESULTS)
    assert lines and {line.name for line in lines} <= set(TASKS)
    (parameters,) = (line.values["parameters"] for line in lines if line.name == "model/base")
    assert PAGE.read_text(encoding="utf-8") == page(lines, parameters=f"{parameters / 1e6:.2f} million")


@pytest.mark.parametrize("part", ["pairs", "labels", "maths", "verifiers"])
def test_a_part_that_was_not_measured_is_left_out(part: str) -> None:
    lines = [line for line in read_lines(RESULTS) if line.part != part]
    headings = {
        "pairs": "## Pairs",
        "labels": "## Labels",
        "maths": "## Verified",
        "verifiers": "## Verifiers",
    }
    written = page(lines, parameters="1")
    assert [name for name, heading in headings.items() if heading not in written] == [part]


def test_figures_are_those_of_the_lines() -> None:
    estimate = {"value": 0.125, "low": 0.0625, "high": 0.25, "n": 8}
    held = {"before": estimate, "after": estimate, "gain": estimate, "errors": 3}
    values = {
        "held_out": {"greedy": held, "sampled": {"errors": 8}},
        "baselines": {"a rule": estimate},
        "cpu_s": 60.0,
    }
    line = Line(
        name="maths/x", date="2026-01-01", command="", machine="m", versions={}, commit="", values=values
    )
    written = page([line], parameters="1")
    assert "| x | greedy | 8 | 3 | 0.125 [0.062, 0.250] |" in written and "| sampled |" not in written
    assert "1 processor minutes" in written
