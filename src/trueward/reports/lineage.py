"""A layered drawing of a lineage graph as inline SVG: roots at the top, every parent above its children.

The layered method of Sugiyama, Tagawa and Toda (1981) in small: longest-path layers, a bend point wherever an
edge crosses a layer, and barycentre sweeps against crossings.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from trueward.reports.summary import LineageGraph, LineageNode

__all__ = ["lineage_svg"]

BOX_WIDTH, BOX_HEIGHT = 168, 42
GAP_X, GAP_Y = 16, 34
BEND_WIDTH = 8
MARGIN = 6
MAX_BOXES = 5
NUM_SWEEPS = 9
MAX_CHARACTERS = 20

_Bend = tuple[str, str, int]
"""Where the edge (parent, child) crosses a layer."""
_Item = str | _Bend


class _Drawing(NamedTuple):
    centres: dict[_Item, tuple[float, float]]
    width: float
    height: float


def lineage_svg(graph: LineageGraph) -> Markup:
    """The drawing, escaped, coloured by the style sheet. The graph holds at least one record."""
    edges = graph.edges
    layers = _layers([node.id for node in graph.nodes], edges)
    drawing = _placed(_ordered(layers, edges))
    paths = [_edge([drawing.centres[item] for item in _way(edge, layers)]) for edge in edges]
    boxes = [_box(node, drawing.centres[node.id]) for node in graph.nodes]
    return Markup(
        '<svg class="lineage" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Lineage graph" '
        'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">{paths}{boxes}</svg>'
    ).format(
        width=drawing.width, height=drawing.height, paths=Markup("").join(paths), boxes=Markup("").join(boxes)
    )


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Layer of each record: below its parents, roots just above their children, at most MAX_BOXES in one."""
    layers = dict.fromkeys(nodes, 0)
    _pushed_down(layers, edges)
    children: dict[str, list[str]] = defaultdict(list)
    for parent, child in edges:
        children[parent].append(child)
    roots = set(nodes) - {child for _, child in edges}
    for root in roots & children.keys():
        layers[root] = max(0, min(layers[child] for child in children[root]) - 1)
    layer = 0
    while layer <= max(layers.values()):
        for surplus in [node for node in nodes if layers[node] == layer][MAX_BOXES:]:
            layers[surplus] += 1
        _pushed_down(layers, edges)
        layer += 1
    return layers


def _pushed_down(layers: dict[str, int], edges: Sequence[tuple[str, str]]) -> None:
    # Ends because a lineage has no cycle, which its validator has seen to.
    while late := [(parent, child) for parent, child in edges if layers[child] <= layers[parent]]:
        for parent, child in late:
            layers[child] = max(layers[child], layers[parent] + 1)


def _way(edge: tuple[str, str], layers: Mapping[str, int]) -> list[_Item]:
    """An edge as its parent, a bend in every layer between, and its child."""
    parent, child = edge
    return [parent, *((parent, child, layer) for layer in range(layers[parent] + 1, layers[child])), child]


def _ordered(layers: Mapping[str, int], edges: Sequence[tuple[str, str]]) -> list[list[_Item]]:
    """The layers' items from left to right, each near the mean of its neighbours above and below."""
    rows: dict[int, list[_Item]] = defaultdict(list)
    for node, layer in layers.items():
        rows[layer].append(node)
    above: dict[_Item, list[_Item]] = defaultdict(list)
    below: dict[_Item, list[_Item]] = defaultdict(list)
    for edge in edges:
        way = _way(edge, layers)
        for item in way[1:-1]:
            assert isinstance(item, tuple), "all but the ends of a way are bends"
            rows[item[2]].append(item)
        for upper, lower in itertools.pairwise(way):
            below[upper].append(lower)
            above[lower].append(upper)
    ordered = [rows[layer] for layer in sorted(rows)]
    for sweep in range(NUM_SWEEPS):
        # Downwards by the parents, then upwards by the children, in turns.
        neighbours = above if sweep % 2 == 0 else below
        for row in ordered if sweep % 2 == 0 else reversed(ordered):
            at = {item: i - (len(r) - 1) / 2 for r in ordered for i, item in enumerate(r)}
            means = {item: _mean([at[n] for n in neighbours[item]], at[item]) for item in row}
            row.sort(key=means.__getitem__)
    return ordered


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _placed(rows: list[list[_Item]]) -> _Drawing:
    widths = [sum(map(_width, row)) + GAP_X * (len(row) - 1) for row in rows]
    total = max(widths)
    centres: dict[_Item, tuple[float, float]] = {}
    for layer, (row, width) in enumerate(zip(rows, widths, strict=True)):
        x = MARGIN + (total - width) / 2
        for item in row:
            centres[item] = (x + _width(item) / 2, MARGIN + layer * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT / 2)
            x += _width(item) + GAP_X
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    return _Drawing(centres, total + 2 * MARGIN, height)


def _width(item: _Item) -> int:
    return BOX_WIDTH if isinstance(item, str) else BEND_WIDTH


def _edge(points: list[tuple[float, float]]) -> Markup:
    (x, y), *rest = points
    y += BOX_HEIGHT / 2
    steps = [f"M{x:g} {y:g}"]
    for i, (next_x, next_y) in enumerate(rest):
        top = next_y - BOX_HEIGHT / 2
        middle = (y + top) / 2
        steps.append(f"C{x:g} {middle:g} {next_x:g} {middle:g} {next_x:g} {top:g}")
        if i < len(rest) - 1:
            steps.append(f"V{next_y + BOX_HEIGHT / 2:g}")
        x, y = next_x, next_y + BOX_HEIGHT / 2
    return Markup('<path class="edge" d="{}"/>').format("".join(steps))


def _box(node: LineageNode, centre: tuple[float, float]) -> Markup:
    x, y = centre[0] - BOX_WIDTH / 2, centre[1] - BOX_HEIGHT / 2
    label = node.label if len(node.label) <= MAX_CHARACTERS else node.label[: MAX_CHARACTERS - 1] + "…"
    return Markup(
        '<g class="node" data-kind="{kind}"><title>{kind} {full}\n{id}</title>'
        '<rect x="{x:g}" y="{y:g}" width="{w}" height="{h}" rx="7"/>'
        '<rect class="mark" x="{x:g}" y="{y:g}" width="5" height="{h}" rx="2.5"/>'
        '<text class="kind" x="{tx:g}" y="{ky:g}">{kind} · {short}</text>'
        '<text x="{tx:g}" y="{ly:g}">{label}</text></g>'
    ).format(
        kind=node.kind,
        full=node.label,
        id=node.id,
        short=node.id[:8],
        label=label,
        x=x,
        y=y,
        w=BOX_WIDTH,
        h=BOX_HEIGHT,
        tx=x + 14,
        ky=y + 16,
        ly=y + 32,
    )
