"""Contraction trees: tensors at the bottom, each step of a plan above the two that it contracts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy

from tncompiler.compiler import Compilation
from tncompiler.draw.canvas import COLOURS, Canvas, Point, arrange
from tncompiler.draw.network import LABEL, MOST, RADIUS, TITLE, title
from tncompiler.explain import quantity
from tncompiler.ir.network import TensorNetwork, networks_of
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.plan import NetworkOrder

_ACROSS, _UP = 1.5, 0.85  # inches between leaves, and between levels


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor or step of a tree: result labels, its elements, its flops, and its parts."""

    name: str
    kind: str
    labels: frozenset[int]
    elements: int
    flops: int = 0
    parts: tuple[Node, ...] = ()


def draw_trees(
    canvas: Canvas, compilation: Compilation, nominal: Mapping[sympy.Symbol, int]
) -> None:
    """The trees of the forward plan's networks, in order."""
    logical = compilation.logical(compilation.default_dtypes("float32"))
    networks = {network.name: network for network in networks_of(logical)}
    orders = [o for o in compilation.plan(nominal).networks if o.tensors and o.name in networks]
    if not orders:
        canvas.text((0, 0), "no tensor is contracted", TITLE)
        return
    pictures = []
    for number, order in enumerate(orders[:MOST], start=1):
        picture = Canvas()
        network = networks[order.name]
        root = tree_of(network, order, nominal)
        _draw_node(picture, root, network, leaf=[0])
        if len(orders) > 1:
            title(picture, f"{number}: {order.name}")
        pictures.append(picture)
    arrange(pictures, len(orders) - len(pictures), canvas)


def tree_of(
    network: TensorNetwork, order: NetworkOrder, nominal: Mapping[sympy.Symbol, int]
) -> Node:
    """The tree of one network. Flops count as the plan's: a diagonal or a sum of its own is free."""
    sizes = {label: evaluate(size, nominal) for label, size in network.sizes.items()}

    def count(labels: Iterable[int]) -> int:
        return math.prod(sizes[label] for label in labels)

    nodes: list[Node] = []
    for number, (name, labels) in enumerate(zip(network.tensors, network.inputs, strict=True)):
        kind = network.graph.nodes[("tensor", number)]["kind"]
        if labels:
            nodes.append(Node(name, kind, frozenset(labels), count(set(labels))))
    left = dict(enumerate(nodes))
    for a, b in order.pairs:
        pair = left.pop(a), left.pop(b)
        joined = pair[0].labels | pair[1].labels
        wanted = frozenset(network.output).union(*(node.labels for node in left.values()))
        kept = joined & wanted
        alone = {k for k in joined - kept if not all(k in node.labels for node in pair)}
        work = count(joined - alone) * (2 if joined - alone - kept else 1)
        node = Node("", "step", kept, count(kept), work, pair)
        left[len(nodes) + len(left) + _done(node) - 1 - (len(nodes) - _leaves_of(left, node))] = (
            node
        )
    return next(iter(left.values()))
