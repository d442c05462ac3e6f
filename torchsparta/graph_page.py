"""The FX graph of a propagation as one SVG: a box for each operator, a picture for each tensor."""

from __future__ import annotations

from html import escape

from torch import fx

from .capture import packet_name
from .pictures import tesa_picture
from .propagation.analysis import Propagation
from .tesa import TeSA

WIDTH, GAP_X, GAP_Y, HEAD, PICTURE = 252, 26, 34, 38, (64, 40)
"""Pixels: of a box, between boxes, between rows, of a box's first lines, of a tensor's picture."""


def graph_svg(propagation: Propagation) -> str:
    """Operators from top to bottom in the order of the data; parameters stand in the box of their first user."""
    boxes = _boxes(propagation)
    rows = _rows(boxes)
    place: dict[fx.Node, tuple[float, float]] = {}
    y = 8.0
    width = max(len(row) for row in rows) * (WIDTH + GAP_X) + GAP_X if rows else WIDTH
    for row in rows:
        row.sort(key=lambda n: _wanted_x(n, boxes, place))
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for i, node in enumerate(row):
            place[node] = left + i * (WIDTH + GAP_X), y
        y += max(_height(boxes[n]) for n in row) + GAP_Y
    out = [
        f'<svg class="graph" viewBox="0 0 {width:.0f} {y:.0f}" style="width:{width:.0f}px;height:{y:.0f}px">'
    ]
    for node, (x, top) in place.items():
        for source in _sources(node, boxes):
            sx, sy = place[source]
            x0, y0, x1 = sx + WIDTH / 2, sy + _height(boxes[source]), x + WIDTH / 2
            out.append(f'<path class="edge" d="M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + GAP_Y:.0f} {x1:.0f} {top - GAP_Y:.0f} '
                       f'{x1:.0f} {top:.0f}"/>')  # fmt: skip
    gained = propagation.gained()
    for node, (x, top) in place.items():
        out.append(_box(node, boxes[node], x, top, gained))
    return "".join([*out, "</svg>"])


def _boxes(propagation: Propagation) -> dict[fx.Node, list[tuple[str, TeSA]]]:
    """Every node that makes a tensor, with the tensors to draw in its box: its result, then its parameters."""
    boxes: dict[fx.Node, list[tuple[str, TeSA]]] = {}
    shown: set[str] = set()
    for node in propagation.graph.nodes:
        if node.op == "get_attr" or node.name not in propagation.tensors:
            continue
        tensors = [(node.name, propagation.tensors[node.name])]
        for source in node.all_input_nodes:
            name = str(source.target)
            if source.op == "get_attr" and name in propagation.tensors and name not in shown:
                shown.add(name)
                tensors.append((name, propagation.tensors[name]))
        boxes[node] = tensors
    return boxes


def _sources(node: fx.Node, boxes: dict[fx.Node, list[tuple[str, TeSA]]]) -> list[fx.Node]:
    """Boxes that a node reads from, through nodes that have none (sizes, the parts of a tuple)."""
    found: dict[fx.Node, None] = {}
    queue = list(node.all_input_nodes)
    while queue:
        source = queue.pop()
        if source in boxes:
            found[source] = None
        elif source.op == "call_function":
            queue.extend(source.all_input_nodes)
    return list(found)


def _rows(boxes: dict[fx.Node, list[tuple[str, TeSA]]]) -> list[list[fx.Node]]:
    """Boxes by depth: each below all that it reads from."""
    depth: dict[fx.Node, int] = {}
    rows: list[list[fx.Node]] = []
    for node in boxes:
        depth[node] = max((depth[s] + 1 for s in _sources(node, boxes)), default=0)
        while len(rows) <= depth[node]:
            rows.append([])
        rows[depth[node]].append(node)
    return rows


def _wanted_x(
    node: fx.Node, boxes: dict[fx.Node, list[tuple[str, TeSA]]], place: dict[fx.Node, tuple[float, float]]
) -> float:
    above = [place[s][0] for s in _sources(node, boxes) if s in place]
    return sum(above) / len(above) if above else 0.0


def _height(tensors: list[tuple[str, TeSA]]) -> float:
    return HEAD + len(tensors) * (PICTURE[1] + 6)


def _box(node: fx.Node, tensors: list[tuple[str, TeSA]], x: float, y: float, gained: dict[str, int]) -> str:
    kind = packet_name(node.target) if node.op == "call_function" else node.op
    sparse = "sparse" if any(t.density() < 1 for _, t in tensors) else ""
    out = [
        f'<g transform="translate({x:.0f} {y:.0f})"><rect class="box {sparse}" width="{WIDTH}" '
        f'height="{_height(tensors):.0f}" rx="9"/>'
        f'<text x="10" y="17" class="strong">{escape(kind[:30])}</text>'
        f'<text x="10" y="31" class="tick">{escape(node.name[:34])}</text>'
    ]
    for i, (name, tesa) in enumerate(tensors):
        top = HEAD + i * (PICTURE[1] + 6)
        label = "result" if i == 0 else name if len(name) < 21 else "…" + name[-20:]
        more = ""
        if i and name in gained:
            more = f'<text x="{PICTURE[0] + 18}" y="{top + 37}" class="gain">+{gained[name]:,} by propagation</text>'
        out.append(
            f"<title>{escape(f'{name}: {tesa}')}</title>"
            f'<image x="10" y="{top}" width="{PICTURE[0]}" height="{PICTURE[1]}" preserveAspectRatio="none" '
            f'href="{tesa_picture(tesa)}"/>'
            f'<text x="{PICTURE[0] + 18}" y="{top + 11}" class="name">{escape(label)}</text>'
            f'<text x="{PICTURE[0] + 18}" y="{top + 24}" class="tick">{"×".join(map(str, tesa.shape)) or "scalar"}, '
            f"{tesa.sparsity():.0%} pruned</text>{more}"
        )
    return "".join([*out, "</g>"])
