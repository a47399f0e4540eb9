"""Where the tensors and dots of a network go: rows, rings, a hub beside them, else least stress.

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

SPACING = 1.35  # inches between neighbours
_STARTS = 12


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
        part = _part(graph.subgraph(nodes), nodes, [hub for hub in hubs if hub in members])
        low = min(x for x, _ in part.positions.values())
        high = max(x for x, _ in part.positions.values())
        positions.update({node: (x - low + left, y) for node, (x, y) in part.positions.items()})
        legs.update(part.legs)
        left += high - low + 1.3 * SPACING
    return Layout(positions, legs)


def _part(graph: nx.Graph, nodes: list[Hashable], hubs: list[Hashable]) -> Layout:
    if row := _as_row(graph, nodes):
        return _row(row)
    if ring := _as_ring(graph, nodes):
        return _ring(ring)
    for hub in dict.fromkeys((*hubs, *nodes)):
        others = [node for node in nodes if node != hub]
        rest = graph.subgraph(others)
        if len(others) > 1 and (row := _as_row(rest, others)):
            return _row(row, hub)
        if len(others) > 3 and (ring := _as_ring(rest, others)):
            return _ring(ring, hub)
    return _least_stress(graph, nodes)


def _as_row(graph: nx.Graph, nodes: list[Hashable]) -> list[Hashable]:
    """The nodes in order along a chain; empty if they are none."""
    ends = [node for node in nodes if graph.degree(node) <= 1]
    if len(nodes) == 1:
        return nodes
    if len(ends) != 2 or not nx.is_connected(graph) or graph.number_of_edges() != len(nodes) - 1:
        return []
    return list(nx.shortest_path(graph, ends[0], ends[1]))


def _as_ring(graph: nx.Graph, nodes: list[Hashable]) -> list[Hashable]:
    """The nodes in order around a ring; empty if they are none."""
    if len(nodes) < 3 or not nx.is_connected(graph) or any(graph.degree(n) != 2 for n in nodes):
        return []
    first, second = nodes[0], min(graph[nodes[0]], key=nodes.index)
    around = nx.Graph(graph)
    around.remove_edge(first, second)
    return list(nx.shortest_path(around, second, first))[::-1]


def _row(nodes: list[Hashable], hub: Hashable | None = None) -> Layout:
    positions = {node: (k * SPACING, 0.0) for k, node in enumerate(nodes)}
    legs = dict.fromkeys(nodes, math.pi / 2)
    if hub is not None:
        positions[hub] = ((len(nodes) - 1) * SPACING / 2, -1.1 * SPACING)
        legs[hub] = -math.pi / 2
    return Layout(positions, legs)


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
