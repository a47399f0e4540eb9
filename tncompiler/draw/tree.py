"""Contraction trees: tensors at the bottom, each step of a plan above the two that it contracts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy

from tncompiler.compiler import Compilation
from tncompiler.draw.canvas import (
    LABEL,
    RADIUS,
    TITLE,
    Canvas,
    Point,
    arrange,
    name_in_circle,
    text_size,
    title,
)
from tncompiler.draw.network import MOST
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
    """The tree of one network; a diagonal or a sum over one axis is not counted."""
    sizes = {label: evaluate(size, nominal) for label, size in network.sizes.items()}

    def count(labels: Iterable[int]) -> int:
        return math.prod(sizes[label] for label in labels)

    nodes: list[Node] = []
    for number, (name, labels) in enumerate(zip(network.tensors, network.inputs, strict=True)):
        kind = network.graph.nodes[("tensor", number)]["kind"]
        if labels:
            nodes.append(Node(name, kind, frozenset(labels), count(set(labels))))
    left = dict(enumerate(nodes))
    for number, (a, b) in enumerate(order.pairs, start=len(nodes)):
        pair = left.pop(a), left.pop(b)
        joined = pair[0].labels | pair[1].labels
        kept = joined & frozenset(network.output).union(*(node.labels for node in left.values()))
        alone = (joined - kept) - (pair[0].labels & pair[1].labels)
        work = count(joined - alone) * (2 if joined - alone - kept else 1)
        left[number] = Node("", "step", kept, count(kept), work, pair)
    return next(iter(left.values()))


def _draw_node(canvas: Canvas, node: Node, network: TensorNetwork, leaf: list[int]) -> Point:
    """Draw a node over its parts, leaves from left to right; returns its place."""
    if not node.parts:
        place = (leaf[0] * _ACROSS, 0.0)
        leaf[0] += 1
        _draw_leaf(canvas, node, network, place)
        return place
    below = [_draw_node(canvas, part, network, leaf) for part in node.parts]
    place = (sum(x for x, _ in below) / len(below), _UP * _height(node))
    for x, y in below:
        canvas.line([place, (x, place[1]), (x, y)], 1.2, "branch")
    names = [network.index_name(label) for label in sorted(node.labels)]
    work = quantity(node.flops, "FLOP")
    text = f"{_wrapped(names)}\n{quantity(node.elements)} elem\n{work}"
    canvas.text(place, text, LABEL, role="step", ground="white", edge="black")
    return place


def _draw_leaf(canvas: Canvas, node: Node, network: TensorNetwork, place: Point) -> None:
    canvas.circle(place, RADIUS, node.kind, "tensor")
    name_in_circle(canvas, node.name, place)
    names = [network.index_name(label) for label in sorted(node.labels)]
    text = f"{_wrapped(names)}\n{quantity(node.elements)} elem"
    below = RADIUS + 0.08 + text_size(text, LABEL)[1] / 2
    canvas.text((place[0], place[1] - below), text, LABEL, role="label")


def _height(node: Node) -> int:
    return 1 + max(map(_height, node.parts)) if node.parts else 0


def _wrapped(names: list[str], most: int = 18) -> str:
    """Index names in brackets, a line of about `most` characters at a time."""
    lines = [""]
    for name in names:
        piece = name if name == names[-1] else f"{name}, "
        if lines[-1] and len(lines[-1]) + len(piece) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(["(" + lines[0], *lines[1:]]) + ")"
