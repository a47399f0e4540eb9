"""Networks and contraction trees as the page draws them: places in inches, lines as SVG paths."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import networkx as nx

from tncompiler.draw.canvas import RADIUS, Point
from tncompiler.draw.explorer.formulas import Formulas
from tncompiler.draw.layout import Layout, lay_out
from tncompiler.draw.network import Wires, wires_of
from tncompiler.draw.tree import Node, place_tree
from tncompiler.ir.network import TensorNetwork

_INCH = 72  # units of the page
_LEG = 0.62
_BEND = 0.5  # inches between parallel bonds
_ANGLES = tuple(math.radians(15 * k) for k in range(24))


def network_data(network: TensorNetwork, formulas: Formulas) -> dict[str, Any]:
    """A network: tensors, dots, one line for each end of an index, and the indices."""
    wires = wires_of(network)
    kinds = [network.graph.nodes["tensor", k]["kind"] for k in range(len(network.tensors))]
    layout = _layout(wires, kinds)
    places = {node: (x, -y) for node, (x, y) in layout.positions.items()}
    named = zip(network.tensors, kinds, network.inputs, strict=True)
    sizes = network.sizes
    return {
        "name": network.name,
        "tensors": [
            {"name": name, "kind": kind, "labels": labels, **_at(places["tensor", k])}
            for k, (name, kind, labels) in enumerate(named)
        ],
        "dots": [_at(places["dot", label]) for label in wires.dots],
        "lines": _lines(wires, places, layout.legs),
        "indices": [
            {"name": network.index_name(label), "size": formulas.size(sizes[label])}
            for label in range(len(sizes))
        ],
    }


def tree_data(nodes: Sequence[Node], which: int, formulas: Formulas) -> dict[str, Any]:
    """A tree of the network `which`: nodes as they come, the root last."""
    return {
        "network": which,
        "nodes": [
            {
                "tensor": node.tensor,
                "labels": node.labels,
                "parts": node.parts or None,
                "summed": node.summed,
                "flops": formulas.terms(node.flops),
                **_at((x, -y)),
            }
            for node, (x, y) in zip(nodes, place_tree(nodes), strict=True)
        ],
    }


def _at(place: Point) -> dict[str, float]:
    return {"x": round(place[0], 3), "y": round(place[1], 3)}


def _layout(wires: Wires, kinds: Sequence[str]) -> Layout:
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(("tensor", k) for k in range(len(kinds)))
    graph.add_nodes_from(("dot", label) for label in wires.dots)
    for _, a, b in wires.bonds:
        graph.add_edge(a, b, length=0.85 if "dot" in (a[0], b[0]) else 1.0)  # type: ignore[index]
    moving = [("tensor", k) for k, kind in enumerate(kinds) if kind in ("input", "intermediate")]
    return lay_out(graph, moving)


def _lines(
    wires: Wires, places: Mapping[Hashable, Point], wishes: Mapping[Hashable, float]
) -> list[dict[str, Any]]:
    """Bonds, spokes of dots, loops and open legs; where an index is said, its label stands."""
    lines: list[dict[str, Any]] = []
    used: dict[Hashable, list[float]] = defaultdict(list)
    pairs: dict[frozenset[Hashable], list[tuple[int, Hashable, Hashable]]] = defaultdict(list)
    for bond in wires.bonds:
        pairs[frozenset(bond[1:])].append(bond)
    spoken = {label for label, node in wires.legs if node[0] == "dot"}  # type: ignore[index]
    for bonds in pairs.values():
        for number, (label, a, b) in enumerate(bonds):
            bend = _BEND * (number - (len(bonds) - 1) / 2) * (1 if places[a] < places[b] else -1)
            lines.append(_bond(label, places[a], places[b], bend))
            lines[-1]["said"] = label not in spoken
            spoken |= {label} if b[0] == "dot" else set()  # type: ignore[index]
            for one, other in ((a, b), (b, a)):
                used[one].append(_angle(places[one], places[other]))
    for label, node in wires.loops:
        angle = _freest(used[node], -wishes[node])
        used[node] += [angle - 0.5, angle, angle + 0.5]
        lines.append(_loop(label, places[node], angle))
    for label, node in wires.legs:
        angle = _freest(used[node], -wishes[node])
        used[node].append(angle)
        end = _polar(places[node], angle, _LEG)
        said = _polar(places[node], angle, _LEG + 0.14 + 0.16 * abs(math.cos(angle)))
        lines.append(_line(label, _path(places[node], end), said))
    return lines


def _line(label: int, path: str, said: Point) -> dict[str, Any]:
    return {"label": label, "path": path, **_at(said), "said": True}


def _bond(label: int, a: Point, b: Point, bend: float) -> dict[str, Any]:
    length = math.dist(a, b) or 1.0
    middle = (
        (a[0] + b[0]) / 2 - bend * (b[1] - a[1]) / length,
        (a[1] + b[1]) / 2 + bend * (b[0] - a[0]) / length,
    )
    if not bend:
        return _line(label, _path(a, b), middle)
    said = tuple((p + q) / 4 + m / 2 for p, q, m in zip(a, b, middle, strict=True))
    return _line(label, f"{_path(a)}Q{_pair(middle)} {_pair(b)}", (said[0], said[1]))


def _loop(label: int, place: Point, angle: float) -> dict[str, Any]:
    """A trace: a round line from a tensor to itself."""
    start, end = _polar(place, angle - 0.5, RADIUS), _polar(place, angle + 0.5, RADIUS)
    radius = round(0.22 * _INCH, 1)
    path = f"{_path(start)}A{radius} {radius} 0 1 1 {_pair(end)}"
    return _line(label, path, _polar(place, angle, 0.82))


def _path(start: Point, end: Point | None = None) -> str:
    return f"M{_pair(start)}" if end is None else f"M{_pair(start)}L{_pair(end)}"


def _pair(place: Point) -> str:
    return f"{place[0] * _INCH:.1f} {place[1] * _INCH:.1f}"


def _polar(place: Point, angle: float, length: float) -> Point:
    return place[0] + length * math.cos(angle), place[1] + length * math.sin(angle)


def _angle(start: Point, end: Point) -> float:
    return math.atan2(end[1] - start[1], end[0] - start[0])


def _freest(used: Sequence[float], wish: float) -> float:
    """The direction with most room, near the one that is wished for."""

    def worth(angle: float) -> float:
        apart = min([abs(math.remainder(angle - other, math.tau)) for other in used], default=3.0)
        return round(min(apart, 0.78) + 0.4 * math.cos(angle - wish), 6)

    return max(_ANGLES, key=worth)
