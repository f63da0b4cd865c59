"""docs/trust.md: every complaint has an answer and threads, and every test it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
_THREAD = re.compile(r"[\w-]+#\d+")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
NAMED = sorted(set(_NAMED.findall(PAGE)))


def named_in(file: str) -> set[str]:
    """Test functions at the top level of a file below tests/."""
    path = ROOT / "tests" / file
    assert path.is_file(), f"docs/trust.md names {file}, which is not there"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}::{name}" for file, name in NAMED])
def test_every_named_test_exists(file: str, name: str) -> None:
    assert name.startswith("test_") and name in named_in(file)


def test_every_complaint_has_threads_an_answer_and_a_test() -> None:
    assert [int(line.split("|")[1]) for line in ROWS] == list(range(1, 26))
    for line in ROWS:
        _, _, complaint, answer, held, _ = line.split("|")
        assert _THREAD.search(complaint) and answer.strip() and _NAMED.search(held), line
        # Nothing in backticks in the last column but names of tests.
        assert re.sub(_NAMED, "", held).strip(" ,") == "", held
