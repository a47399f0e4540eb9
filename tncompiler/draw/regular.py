"""Graphs with a shape of their own: rows, rings, stars, fans, trees, lattices.

In: a graph and its nodes in order. Out: the nodes in the order or the places of that shape, empty
where the graph has another one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import networkx as nx
import numpy as np
from scipy.spatial import KDTree

Grid = dict[Hashable, tuple[int, int]]  # column and row of each node
_PUSHES = 60


def as_row(graph: nx.Graph, nodes: list[Hashable]) -> list[Hashable]:
    """The nodes in order along a chain."""
    ends = [node for node in nodes if graph.degree(node) <= 1]
    if len(nodes) == 1:
        return nodes
    if len(ends) != 2 or graph.number_of_edges() != len(nodes) - 1 or not nx.is_connected(graph):
        return []
    return list(nx.shortest_path(graph, ends[0], ends[1]))


def as_ring(graph: nx.Graph, nodes: list[Hashable]) -> list[Hashable]:
    """The nodes in order around a ring."""
    if len(nodes) < 3 or any(graph.degree(n) != 2 for n in nodes) or not nx.is_connected(graph):
        return []
    first, second = nodes[0], min(graph[nodes[0]], key=nodes.index)
    around = nx.Graph(graph)
    around.remove_edge(first, second)
    return list(nx.shortest_path(around, second, first))[::-1]


def as_lattice(graph: nx.Graph, nodes: list[Hashable]) -> Grid:
    """Column and row in a rectangle of at least 2 × 3, the longer side across.

    Steps from two corners of one side tell where a node is; every edge must then join neighbours.
    """
    corners = [node for node in nodes if graph.degree(node) == 2]
    if len(corners) != 4 or graph.number_of_edges() >= 2 * len(nodes):
        return {}
    steps = nx.single_source_shortest_path_length(graph, corners[0])
    other = min(corners[1:], key=lambda node: (steps.get(node, len(nodes)), nodes.index(node)))
    back = nx.single_source_shortest_path_length(graph, other)
    if len(steps) < len(nodes):
        return {}
    last = steps[other]
    places = {
        n: ((steps[n] - back[n] + last) // 2, (steps[n] + back[n] - last) // 2) for n in nodes
    }
    columns, rows = last + 1, len(nodes) // (last + 1)
    wanted = {(column, row) for column in range(columns) for row in range(rows)}
    edges = rows * (columns - 1) + columns * (rows - 1)
    apart = (
        abs(places[a][0] - places[b][0]) + abs(places[a][1] - places[b][1]) for a, b in graph.edges
    )
    if set(places.values()) != wanted or graph.number_of_edges() != edges or set(apart) != {1}:
        return {}
    return (
        places
        if columns >= rows
        else {node: (row, column) for node, (column, row) in places.items()}
    )


def as_star(graph: nx.Graph, nodes: list[Hashable]) -> list[Hashable]:
    """The middle, then those around it: at least three, joined to nothing else."""
    middle = max(nodes, key=graph.degree)
    others = [node for node in nodes if node != middle]
    if len(others) < 3 or any(graph.degree(node) != 1 for node in others):
        return []
    return [middle, *others] if graph.degree(middle) == len(others) else []


def as_fan(
    graph: nx.Graph, nodes: list[Hashable]
) -> tuple[Hashable, Hashable, list[Hashable]] | None:
    """Two hubs, and three or more nodes that are joined to both and to nothing else."""
    if len(nodes) < 5:
        return None
    one, other = sorted(nodes, key=graph.degree, reverse=True)[:2]
    between = [node for node in nodes if node not in (one, other)]
    if any(set(graph[node]) != {one, other} for node in between):
        return None
    above, below = sorted((one, other), key=nodes.index)
    return above, below, between


def as_tree(graph: nx.Graph, nodes: list[Hashable], root: Hashable | None) -> Grid:
    """Leaves side by side, every other node over the middle of those that hang on it.

    Columns count half steps. ``root``: the node on top; the middle of the tree if None.
    """
    if graph.number_of_edges() != len(nodes) - 1 or not nx.is_connected(graph):
        return {}
    top = nx.center(graph)[0] if root is None else root
    order = list(nx.dfs_preorder_nodes(graph, top))
    depth = nx.single_source_shortest_path_length(graph, top)
    below = {node: [n for n in graph[node] if depth[n] > depth[node]] for node in order}
    leaves = [node for node in order if not below[node]]
    columns = {node: 2 * k for k, node in enumerate(leaves)}
    for node in reversed(order):
        if below[node]:
            own = [columns[n] for n in below[node]]
            columns[node] = (min(own) + max(own)) // 2
    return {node: (columns[node], depth[node]) for node in order}


def by_distances(graph: nx.Graph, nodes: list[Hashable], pivots: int = 50) -> np.ndarray:
    """Places in the plane after the distances to a few nodes far from each other (PivotMDS).

    Cost: that of a breadth-first search for each pivot. Source: Brandes & Pich 2007,
    doi:10.1007/978-3-540-70904-6_6.
    """
    nearest = np.full(len(nodes), np.inf)
    columns, pivot = [], 0
    for _ in range(min(pivots, len(nodes))):
        steps = nx.single_source_shortest_path_length(graph, nodes[pivot])
        columns.append([steps[node] for node in nodes])
        nearest = np.minimum(nearest, columns[-1])
        pivot = int(nearest.argmax())
    squares = np.array(columns, dtype=float).T ** 2
    centred = squares.mean(0) + squares.mean(1)[:, None] - squares.mean() - squares
    _, vectors = np.linalg.eigh(centred.T @ centred)
    places: np.ndarray = centred @ vectors[:, -1:-3:-1]
    return spread(scaled(places, graph, nodes))


def scaled(places: np.ndarray, graph: nx.Graph, nodes: Sequence[Hashable]) -> np.ndarray:
    """The places, edges one length long on average."""
    number = {node: k for k, node in enumerate(nodes)}
    ends = np.array([(number[a], number[b]) for a, b in graph.edges])
    lengths = np.linalg.norm(places[ends[:, 0]] - places[ends[:, 1]], axis=1)
    longer: np.ndarray = places / max(float(lengths.mean()), 1e-9)
    return longer


def spread(places: np.ndarray, least: float = 0.7) -> np.ndarray:
    """Points moved until hardly two are nearer than `least`."""
    places = places + 0.01 * np.random.default_rng(0).standard_normal(places.shape)
    for _ in range(_PUSHES):
        pairs = KDTree(places).query_pairs(least, output_type="ndarray")
        if not len(pairs):
            break
        a, b = pairs.T
        apart = places[a] - places[b]
        lengths = np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-9)
        push = apart * (least - lengths) / (2 * lengths)
        np.add.at(places, a, push)
        np.add.at(places, b, -push)
    return places
