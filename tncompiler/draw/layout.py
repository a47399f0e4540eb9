"""Where the tensors and dots of a network go: rows, rings, lattices, trees, stars, a hub beside a
row or in a ring, a row between two hubs; else least stress, and by Graphviz where it is installed.

In: a graph of nodes. Out: a position in inches for each node, and the way its legs should point.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from tncompiler.draw.canvas import Point
from tncompiler.draw.graphviz import FEW, MANY, graphviz_places, is_installed
from tncompiler.draw.regular import (
    as_fan,
    as_lattice,
    as_ring,
    as_row,
    as_star,
    as_tree,
    by_distances,
    scaled,
    spread,
)
from tncompiler.draw.stress import apart, least_stress, upright
from tncompiler.ir.errors import ArgumentError, BackendError
from tncompiler.ir.origin import call_site

SPACING = 1.35  # inches between neighbours
WAYS = ("auto", "own", "graphviz")
_MANY = 80  # nodes; from here on stress takes too long
_LONG = 24  # tensors that still stand side by side, or around one
_TREE = 6  # nodes of a tree that is drawn from the top down; smaller ones are stars


@dataclass(frozen=True, slots=True)
class Layout:
    """``positions`` in inches; ``legs`` the angle that open legs of a node would like best."""

    positions: Mapping[Hashable, Point]
    legs: Mapping[Hashable, float]


def check_way(way: str) -> None:
    """Raises: ArgumentError for an unknown way, BackendError for a Graphviz that is not there."""
    if way not in WAYS:
        raise ArgumentError(
            f"there is no layout {way!r:.40}",
            where=call_site(),
            fix=f"choose one of {', '.join(WAYS)}",
        )
    if way == "graphviz" and not is_installed():
        raise BackendError(
            f"this layout needs Graphviz's {FEW} and {MANY}, which are not installed",
            where=call_site(),
            fix="apt-get install graphviz (brew, winget: graphviz), or layout='auto'",
        )


def lay_out(graph: nx.Graph, hubs: Sequence[Hashable] = (), way: str = "auto") -> Layout:
    """Lay out each connected part, side by side. ``hubs`` are tried first as the hub of a part.

    ``way``: "auto" asks Graphviz, where it is installed, about parts without a shape of their own;
    "own" never does, so that pictures are the same on every machine; "graphviz" asks about all.
    """
    positions: dict[Hashable, Point] = {}
    legs: dict[Hashable, float] = {}
    left = 0.0
    for members in nx.connected_components(graph):
        nodes = [node for node in graph if node in members]
        own = [hub for hub in hubs if hub in members]
        part = _part(graph.subgraph(nodes).copy(), nodes, own, way)
        low = min(x for x, _ in part.positions.values())
        high = max(x for x, _ in part.positions.values())
        positions.update({node: (x - low + left, y) for node, (x, y) in part.positions.items()})
        legs.update(part.legs)
        left += high - low + 1.3 * SPACING
    return Layout(positions, legs)


def _part(graph: nx.Graph, nodes: list[Hashable], hubs: list[Hashable], way: str) -> Layout:
    shaped = None if way == "graphviz" and len(nodes) > 1 else _shaped(graph, nodes, hubs)
    if shaped is not None:
        return shaped
    many = len(nodes) > _MANY
    found = None if way == "own" else graphviz_places(graph, nodes, MANY if many else FEW)
    if found is None:
        own = by_distances(graph, nodes) if many else least_stress(graph, nodes)
        return _scattered(nodes, own)
    if many:
        return _scattered(nodes, spread(scaled(upright(found), graph, nodes)))
    if way == "graphviz":
        return _scattered(nodes, apart(upright(found)))
    return _scattered(nodes, least_stress(graph, nodes, [found]))


def _shaped(graph: nx.Graph, nodes: list[Hashable], hubs: list[Hashable]) -> Layout | None:
    """The layout of a part that has a shape of its own."""
    if row := as_row(graph, nodes):
        return _row(row)
    if ring := as_ring(graph, nodes):
        return _ring(ring)
    if lattice := as_lattice(graph, nodes):
        return _lattice(lattice)
    few = len(nodes) <= _LONG
    if few and (star := as_star(graph, nodes)):
        return _ring(star[1:], star[0])
    if few and (fan := as_fan(graph, nodes)):
        return _fan(*fan, joined=graph.has_edge(*fan[:2]))
    for hub in _hubs(graph, nodes, hubs):
        others = [node for node in nodes if node != hub]
        rest = graph.subgraph(others)
        if len(others) > 1 and (row := as_row(rest, others)):
            return _row(row, hub)
        if len(others) > 3 and (ring := as_ring(rest, others)):
            return _ring(ring, hub)
    tree = as_tree(graph, nodes, None) if len(nodes) >= _TREE else {}
    return _tree(tree) if max((row for _, row in tree.values()), default=0) > 1 else None


def _hubs(graph: nx.Graph, nodes: list[Hashable], hubs: list[Hashable]) -> list[Hashable]:
    """What may be the hub of a part; of many nodes only the one with most lines."""
    if len(nodes) > _MANY:
        return [max(nodes, key=graph.degree)]
    return list(dict.fromkeys((*hubs, *nodes)))


def _lattice(places: Mapping[Hashable, tuple[int, int]]) -> Layout:
    """Legs point between the lines of the lattice."""
    positions = {node: (column * SPACING, -row * SPACING) for node, (column, row) in places.items()}
    return Layout(positions, dict.fromkeys(places, math.pi / 4))


def _tree(places: Mapping[Hashable, tuple[int, int]]) -> Layout:
    positions = {node: (x * SPACING / 2, -y * SPACING * 0.8) for node, (x, y) in places.items()}
    return Layout(positions, dict.fromkeys(places, -math.pi / 2))


def _scattered(nodes: list[Hashable], lengths: np.ndarray) -> Layout:
    """Places as they are; legs point away from the middle."""
    places = lengths * SPACING
    turned = [math.atan2(y, x) for x, y in places - places.mean(axis=0)]
    positions = {node: (float(x), float(y)) for node, (x, y) in zip(nodes, places, strict=True)}
    return Layout(positions, dict(zip(nodes, turned, strict=True)))


def _row(nodes: list[Hashable], hub: Hashable | None = None) -> Layout:
    """Side by side; a long row goes to and fro in lines below each other."""
    width = len(nodes)
    if hub is None and width > _LONG:
        width = max(_LONG // 2, math.ceil(math.sqrt(1.5 * len(nodes))))
    positions = {node: _to_and_fro(k, width) for k, node in enumerate(nodes)}
    legs = dict.fromkeys(nodes, math.pi / 2)
    if hub is not None:
        positions[hub] = ((len(nodes) - 1) * SPACING / 2, -1.1 * SPACING)
        legs[hub] = -math.pi / 2
    return Layout(positions, legs)


def _fan(above: Hashable, below: Hashable, between: list[Hashable], *, joined: bool) -> Layout:
    """A row between two hubs, with room for its legs; a line that joins the hubs passes between."""
    last = len(between) - 1
    step, height = 1.15 * SPACING, SPACING * (0.8 + 0.1 * last)
    aside = step / 2 if joined and last % 2 == 0 else 0.0
    positions = {node: ((k - last / 2) * step, 0.0) for k, node in enumerate(between)}
    legs = {node: 0.0 if k > last / 2 else math.pi for k, node in enumerate(between)}
    positions |= {above: (aside, height), below: (aside, -height)}
    return Layout(positions, {**legs, above: math.pi / 2, below: -math.pi / 2})


def _to_and_fro(number: int, width: int) -> Point:
    line, column = divmod(number, width)
    column = column if line % 2 == 0 else width - 1 - column
    return column * SPACING, -line * SPACING


def _ring(nodes: list[Hashable], hub: Hashable | None = None) -> Layout:
    count = len(nodes)
    radius = max(SPACING / (2 * math.sin(math.pi / count)), SPACING if hub is not None else 0.0)
    turns = [math.pi * (0.5 + 1 / count - 2 * k / count) for k in range(count)]
    positions = {
        node: (radius * math.cos(turn), radius * math.sin(turn))
        for node, turn in zip(nodes, turns, strict=True)
    }
    legs = dict(zip(nodes, turns, strict=True))
    if hub is not None:
        positions[hub], legs[hub] = (0.0, 0.0), math.pi / 2
    return Layout(positions, legs)
