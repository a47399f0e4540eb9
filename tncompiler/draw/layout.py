"""Where the tensors and dots of a network go: rows, rings, lattices, trees, a hub beside a row or
in a ring; else least stress, and distances to a few nodes where there are many.

In: a graph of nodes. Out: a position in inches for each node, and the way its legs should point.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import numpy as np

from tncompiler.draw.canvas import Point
from tncompiler.draw.regular import as_lattice, as_ring, as_row, as_tree, by_distances

SPACING = 1.35  # inches between neighbours
_STARTS = 12
_MANY = 80  # nodes; from here on stress takes too long
_LONG = 24  # tensors of a row that still stand side by side
_TREE = 6  # nodes of a tree that is drawn from the top down; smaller ones are stars


@dataclass(frozen=True, slots=True)
class Layout:
    """``positions`` in inches; ``legs`` the angle that open legs of a node would like best."""

    positions: Mapping[Hashable, Point]
    legs: Mapping[Hashable, float]


def lay_out(graph: nx.Graph, hubs: Sequence[Hashable] = ()) -> Layout:
    """Lay out each connected part, side by side. ``hubs`` are tried first as the hub of a part."""
    positions: dict[Hashable, Point] = {}
    legs: dict[Hashable, float] = {}
    left = 0.0
    for members in nx.connected_components(graph):
        nodes = [node for node in graph if node in members]
        part = _part(graph.subgraph(nodes).copy(), nodes, [hub for hub in hubs if hub in members])
        low = min(x for x, _ in part.positions.values())
        high = max(x for x, _ in part.positions.values())
        positions.update({node: (x - low + left, y) for node, (x, y) in part.positions.items()})
        legs.update(part.legs)
        left += high - low + 1.3 * SPACING
    return Layout(positions, legs)


def _part(graph: nx.Graph, nodes: list[Hashable], hubs: list[Hashable]) -> Layout:
    if row := as_row(graph, nodes):
        return _row(row)
    if ring := as_ring(graph, nodes):
        return _ring(ring)
    if lattice := as_lattice(graph, nodes):
        return _lattice(lattice)
    for hub in _hubs(graph, nodes, hubs):
        others = [node for node in nodes if node != hub]
        rest = graph.subgraph(others)
        if len(others) > 1 and (row := as_row(rest, others)):
            return _row(row, hub)
        if len(others) > 3 and (ring := as_ring(rest, others)):
            return _ring(ring, hub)
    tree = as_tree(graph, nodes, None) if len(nodes) >= _TREE else {}
    if max((row for _, row in tree.values()), default=0) > 1:
        return _tree(tree)
    return _by_distances(graph, nodes) if len(nodes) > _MANY else _least_stress(graph, nodes)


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


def _by_distances(graph: nx.Graph, nodes: list[Hashable]) -> Layout:
    places = by_distances(graph, nodes) * SPACING
    turned = [math.atan2(y, x) for x, y in places]
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


def _least_stress(graph: nx.Graph, nodes: list[Hashable]) -> Layout:
    """Kamada and Kawai's energy, lowered from several fixed starts; few crossings come first."""
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    wanted = np.array([[lengths[a][b] for b in nodes] for a in nodes])
    random = np.random.default_rng(0)
    turns = 2 * np.pi * np.arange(len(nodes)) / len(nodes)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1) * wanted.max() / 2
    starts = [circle, *(circle[random.permutation(len(nodes))] for _ in range(_STARTS))]
    edges = [(nodes.index(a), nodes.index(b)) for a, b in graph.edges]
    settled = [_settle(start, wanted) for start in starts]
    candidates = [*settled, _layers(graph, nodes)]
    best = min(candidates, key=lambda p: (_crossings(p, edges), _stress(p, wanted)))
    best = _upright(best)
    gaps = np.linalg.norm(best[:, None] - best[None], axis=2) + 9 * np.eye(len(nodes))
    best = best * SPACING * max(1.0, 0.8 / gaps.min())
    middle = best.mean(axis=0)
    turned = [math.atan2(y, x) for x, y in best - middle]
    positions = {node: (float(x), float(y)) for node, (x, y) in zip(nodes, best, strict=True)}
    return Layout(positions, dict(zip(nodes, turned, strict=True)))


def _layers(graph: nx.Graph, nodes: list[Hashable]) -> np.ndarray:
    """Columns by steps from the first node; tidier than least stress where lines would cross."""
    heights: dict[Hashable, float] = {}
    places: dict[Hashable, Point] = {}
    for column, layer in enumerate(nx.bfs_layers(graph, nodes[0])):
        near = {node: [heights[n] for n in graph[node] if n in heights] for node in layer}
        wishes = {node: sum(values) / max(len(values), 1) for node, values in near.items()}
        for row, node in enumerate(sorted(layer, key=lambda n: (-wishes[n], nodes.index(n)))):
            places[node] = (float(column), (len(layer) - 1) / 2 - row)
        heights.update({node: places[node][1] for node in layer})
    return np.array([places[node] for node in nodes])


def _settle(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Guttman's transform, repeated."""
    eye = np.eye(len(points))
    weights = (1 - eye) / (wanted + eye) ** 2
    inverse = np.linalg.pinv(np.diag(weights.sum(axis=1)) - weights)
    for _ in range(150):
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        pull = -weights * wanted / np.maximum(distances, 1e-9)
        np.fill_diagonal(pull, 0.0)
        np.fill_diagonal(pull, -pull.sum(axis=1))
        points = inverse @ pull @ points
    return points


def _stress(points: np.ndarray, wanted: np.ndarray) -> float:
    eye = np.eye(len(points))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    error = (distances - wanted) ** 2 / (wanted + eye) ** 2
    return round(float(error.sum()), 6)  # rounded: equal starts must tie on every machine


def _crossings(points: np.ndarray, edges: list[tuple[int, int]]) -> int:
    """How many pairs of lines cross; not counted for networks too big to look tidy anyway."""
    if len(edges) > 60:
        return 0

    def side(a: int, b: int, c: int) -> bool:
        (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
        return bool((bx - ax) * (cy - ay) > (by - ay) * (cx - ax))

    return sum(
        side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)
        for (a, b), (c, d) in combinations(edges, 2)
        if len({a, b, c, d}) == 4
    )


def _upright(points: np.ndarray) -> np.ndarray:
    """Turned so that the longest way lies across, the first node to the left and above."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned: np.ndarray = centred @ axes.T
    turned = turned * np.where(turned[0] > 0, -1, 1) * np.array([1, -1])
    return turned
