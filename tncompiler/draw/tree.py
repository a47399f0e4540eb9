"""Contraction trees: tensors at the bottom, each step of a plan above the two that it contracts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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
from tncompiler.ir.sizes import Terms
from tncompiler.planning.plan import NetworkOrder

_ACROSS, _UP = 1.5, 0.85  # inches between leaves, and between levels
_MOST_ACROSS = 12  # leaves side by side; with more the tree lies on its side, and fits a page
_DOWN, _ASIDE = 0.56, 1.05  # inches between the leaves of a tree that lies, and its levels


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor or step of a tree.

    ``tensor``: the position of a tensor in its network, None for a step. ``labels``: of the result;
    ``summed``: those that the step sums over. ``parts``: positions of the two nodes that the step
    contracts. ``elements`` of the result; ``flops`` of the step.
    """

    tensor: int | None
    labels: tuple[int, ...]
    elements: Terms
    parts: tuple[int, ...] = ()
    summed: tuple[int, ...] = ()
    flops: Terms = field(default_factory=Terms)


def tree_of(network: TensorNetwork, order: NetworkOrder) -> tuple[Node, ...]:
    """The nodes of one network's tree: tensors, then steps in order, the last of which is the root.

    A diagonal or a sum over one axis is not counted; scalars, which are applied apart, are not
    there.
    """
    sizes = network.sizes
    uses = Counter(network.output)
    nodes: list[Node] = []
    for number, labels in enumerate(network.inputs):
        if labels:
            own = tuple(sorted(set(labels)))
            nodes.append(Node(number, own, Terms.of(1, (sizes[label] for label in own))))
            uses.update(own)
    for a, b in order.pairs:
        pair = set(nodes[a].labels), set(nodes[b].labels)
        uses.subtract((*pair[0], *pair[1]))
        joined = pair[0] | pair[1]
        kept = tuple(sorted(label for label in joined if uses[label] > 0))
        summed = tuple(sorted(joined - set(kept)))
        swept = joined - ((joined - set(kept)) - (pair[0] & pair[1]))
        work = 2 if swept - set(kept) else 1
        flops = Terms.of(work, (sizes[label] for label in sorted(swept)))
        elements = Terms.of(1, (sizes[label] for label in kept))
        nodes.append(Node(None, kept, elements, (a, b), summed, flops))
        uses.update(kept)
    return tuple(nodes)


def place_tree(nodes: Sequence[Node]) -> list[Point]:
    """Where nodes go, in inches: leaves side by side, steps over the middle of their parts."""
    places: list[Point] = [(0.0, 0.0)] * len(nodes)
    levels = [0] * len(nodes)
    leaves = 0
    for k in _upwards(nodes):
        parts = nodes[k].parts
        if parts:
            levels[k] = 1 + max(levels[part] for part in parts)
            middle = sum(places[part][0] for part in parts) / len(parts)
            places[k] = middle, _UP * levels[k]
        else:
            places[k] = leaves * _ACROSS, 0.0
            leaves += 1
    return places


def _upwards(nodes: Sequence[Node]) -> Iterator[int]:
    """Every node under the root after its parts, leaves from left to right."""
    pending = [(len(nodes) - 1, False)]
    while pending:
        k, seen = pending.pop()
        if seen or not nodes[k].parts:
            yield k
        else:
            pending += [(k, True), *((part, False) for part in reversed(nodes[k].parts))]


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
        _draw_tree(picture, tree_of(networks[order.name], order), networks[order.name], nominal)
        if len(orders) > 1:
            title(picture, f"{number}: {order.name}")
        pictures.append(picture)
    arrange(pictures, len(orders) - len(pictures), canvas)


def _draw_tree(
    canvas: Canvas,
    nodes: Sequence[Node],
    network: TensorNetwork,
    nominal: Mapping[sympy.Symbol, int],
) -> None:
    """Branches, then a circle for each tensor and a box for each step."""
    lies = sum(node.tensor is not None for node in nodes) > _MOST_ACROSS
    places = [_lying(place) if lies else place for place in place_tree(nodes)]
    for k in _upwards(nodes):
        node, (x, y) = nodes[k], places[k]
        for part in node.parts:
            below = places[part]
            corner = (x, below[1]) if lies else (below[0], y)
            canvas.line([(x, y), corner, below], 1.2, "branch")
        names = [network.index_name(label) for label in node.labels]
        elements = f"{quantity(node.elements.evaluate(nominal))} elem"
        if node.tensor is None:
            flops = quantity(node.flops.evaluate(nominal), "FLOP")
            lines = [*([] if lies else [_wrapped(names)]), elements, flops]
            canvas.text((x, y), "\n".join(lines), LABEL, role="step", ground="white", edge="black")
            continue
        kind = network.graph.nodes[("tensor", node.tensor)]["kind"]
        canvas.circle((x, y), RADIUS, kind, "tensor")
        name_in_circle(canvas, network.tensors[node.tensor], (x, y))
        text = f"({', '.join(names)})" if lies else f"{_wrapped(names)}\n{elements}"
        width, height = text_size(text, LABEL)
        drop, left = RADIUS + 0.08 + height / 2, RADIUS + 0.08 + width / 2
        canvas.text((x - left, y) if lies else (x, y - drop), text, LABEL, role="label")


def _lying(place: Point) -> Point:
    """A place of a tree that stands, in one that lies: its leaves to the left."""
    return place[1] / _UP * _ASIDE, -place[0] / _ACROSS * _DOWN


def _wrapped(names: list[str], most: int = 18) -> str:
    """Index names in brackets, a line of about `most` characters at a time."""
    lines = [""]
    for name in names:
        piece = name if name == names[-1] else f"{name}, "
        if lines[-1] and len(lines[-1]) + len(piece) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(["(" + lines[0], *lines[1:]]) + ")"
