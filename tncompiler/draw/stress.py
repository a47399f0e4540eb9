"""Graphs without a shape of their own: least stress, from several starts, with few crossings.

In: a graph whose edges may have a `length`. Out: a place for each node, in lengths.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

import networkx as nx
import numpy as np

from tncompiler.draw.canvas import Point

_STARTS = 12
_LEAST = 0.8  # between two nodes


def least_stress(
    graph: nx.Graph, nodes: list[Hashable], others: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Kamada and Kawai's energy, lowered from several fixed starts; few crossings come first.

    ``others``: places from elsewhere that are in the running too.
    """
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    wanted = np.array([[lengths[a][b] for b in nodes] for a in nodes])
    random = np.random.default_rng(0)
    turns = 2 * np.pi * np.arange(len(nodes)) / len(nodes)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1) * wanted.max() / 2
    starts = [circle, *(circle[random.permutation(len(nodes))] for _ in range(_STARTS))]
    edges = [(nodes.index(a), nodes.index(b)) for a, b in graph.edges]
    settled = [_settle(start, wanted) for start in starts]
    candidates = [*settled, _layers(graph, nodes), *others]
    best = min(candidates, key=lambda p: (_crossings(p, edges), _stress(p, wanted)))
    return apart(upright(best))


def apart(points: np.ndarray) -> np.ndarray:
    """The points, farther from each other if two are too near."""
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(len(points))
    farther: np.ndarray = points * max(1.0, _LEAST / max(float(gaps.min()), 1e-3))
    return farther


def upright(points: np.ndarray) -> np.ndarray:
    """Turned so that the longest way lies across, the first node to the left and above."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned: np.ndarray = centred @ axes.T
    turned = turned * np.where(turned[0] > 0, -1, 1) * np.array([1, -1])
    return turned


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
