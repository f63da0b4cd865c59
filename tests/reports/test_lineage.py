"""The lineage drawing: every record once, parents above children, no box on another, nothing unescaped."""

import itertools
import xml.etree.ElementTree as ET
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueward.reports.lineage import BOX_HEIGHT, BOX_WIDTH, MAX_BOXES, lineage_svg
from trueward.reports.summary import LineageGraph, LineageNode

SVG = "{http://www.w3.org/2000/svg}"


class Box(NamedTuple):
    x: float
    y: float


def drawn(graph: LineageGraph) -> tuple[dict[str, Box], list[str]]:
    """Boxes by record id, and the paths."""
    root = ET.fromstring(str(lineage_svg(graph)))
    boxes = {}
    for group in root.findall(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None and title.text and rect is not None
        boxes[title.text.split("\n")[-1]] = Box(float(rect.attrib["x"]), float(rect.attrib["y"]))
    return boxes, [path.attrib["d"] for path in root.findall(f"{SVG}path")]


def graph_of(count: int, edges: list[tuple[int, int]]) -> LineageGraph:
    nodes = tuple(LineageNode(id=f"n{i}", kind="run", label=f"run {i}") for i in range(count))
    return LineageGraph(nodes=nodes, edges=tuple((f"n{a}", f"n{b}") for a, b in edges))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 24), pairs=st.sets(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=40)
)
def test_layers(count: int, pairs: set[tuple[int, int]]) -> None:
    edges = sorted({(min(a, b), max(a, b)) for a, b in pairs if a != b and max(a, b) < count})
    boxes, paths = drawn(graph_of(count, edges))
    assert boxes.keys() == {f"n{i}" for i in range(count)} and len(paths) == len(edges)
    assert all(boxes[f"n{a}"].y + BOX_HEIGHT < boxes[f"n{b}"].y for a, b in edges)
    for y in {box.y for box in boxes.values()}:
        row = sorted(box.x for box in boxes.values() if box.y == y)
        assert len(row) <= MAX_BOXES
        assert all(right - left > BOX_WIDTH for left, right in itertools.pairwise(row))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        pytest.param([(0, 1), (1, 2), (2, 0)], "cycle", id="cycle"),
        pytest.param([(1, 1)], "cycle", id="self"),
        pytest.param([(0, 9)], "not listed", id="stranger"),
    ],
)
def test_impossible_graphs_are_refused(edges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_of(3, edges)


def test_crossings_that_can_be_avoided_are() -> None:
    boxes, _ = drawn(graph_of(4, [(0, 3), (1, 2)]))
    assert (boxes["n0"].x < boxes["n1"].x) == (boxes["n3"].x < boxes["n2"].x)


def test_labels_are_escaped() -> None:
    node = LineageNode(
        id="<i>", kind='"><script>', label="</title><script>alert(1)</script> & long enough to be cut"
    )
    text = str(lineage_svg(LineageGraph(nodes=(node,))))
    assert "<script" not in text and "</title><" not in text.replace("</title><rect", "")
    ET.fromstring(text)
