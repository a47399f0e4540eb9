"""Tensor networks in field notation: circles are tensors, lines indices, black dots copy tensors.

A line between two circles is a bond, one with a loose end an open leg. An index with any other
number of ends meets in a dot: a hyperedge, a diagonal, a sum over one axis, a broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import sympy

from tncompiler.compiler import Compilation
from tncompiler.draw.canvas import (
    LABEL,
    RADIUS,
    TITLE,
    Canvas,
    Point,
    arrange,
    fitted,
    name_in_circle,
    text_size,
    title,
)
from tncompiler.draw.layout import Layout, check_way, lay_out
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.network import TensorNetwork, network_of_argument, networks_of
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import evaluate

MOST = 6  # networks in one picture
DOT = 0.06
_LEG = 0.6
_SHIFTS = (0.0, -0.05, 0.05, -0.1, 0.1, -0.15, 0.15, -0.2, 0.2)  # of a label, along its line
_ANGLES = tuple(math.radians(15 * k) for k in range(24))


@dataclass(frozen=True, slots=True)
class Wires:
    """``bonds`` join two nodes under a label, ``legs`` hang on one, ``loops`` return to it."""

    dots: tuple[int, ...]
    bonds: tuple[tuple[int, Hashable, Hashable], ...]
    legs: tuple[tuple[int, Hashable], ...]
    loops: tuple[tuple[int, Hashable], ...]


def draw_networks(
    canvas: Canvas,
    compilation: Compilation,
    nominal: Mapping[sympy.Symbol, int],
    *,
    without: str | None = None,
    layout: str = "auto",
) -> None:
    """The contraction networks of the logical program, in order.

    ``without``: the name of a tensor to take out: only networks that have it are drawn, each as the
    network of its gradient. ``layout``: "auto", "own" or "graphviz", as in `lay_out`.
    Raises: ArgumentError if no network has the tensor, or for another layout; BackendError if
    Graphviz is asked for and not installed.
    """
    check_way(layout)
    program = compilation.logical(compilation.default_dtypes("float32"))
    networks = shown_networks(program)
    if not networks:
        canvas.text((0, 0), "no tensor is contracted", TITLE)
        return
    if without is not None:
        networks = _having(networks, without)
    pictures = [_Picture(network, nominal, without, layout).draw() for network in networks[:MOST]]
    if len(networks) > 1:
        for number, (picture, network) in enumerate(zip(pictures, networks, strict=False), 1):
            outer = ", ".join(network.index_name(label) for label in network.output)
            title(picture, f"{number}: {network.name}({outer})")
    arrange(pictures, len(networks) - len(pictures), canvas)


def shown_networks(program: Program) -> tuple[TensorNetwork, ...]:
    """The contractions; where there is none, the outputs that are arguments."""
    return networks_of(program) or tuple(
        network_of_argument(argument)
        for argument in program.arguments
        if argument.value.name in program.outputs
    )


def _having(networks: Sequence[TensorNetwork], name: str) -> tuple[TensorNetwork, ...]:
    """The networks that have a tensor."""
    found = tuple(network for network in networks if name in network.tensors)
    if not found:
        known = sorted({tensor for network in networks for tensor in network.tensors})
        raise ArgumentError(
            f"no network has a tensor {name!r:.40}",
            where=call_site(),
            fix=f"name one of {', '.join(known[:8])}",
        )
    return found


def wires_of(network: TensorNetwork) -> Wires:
    """How each index is drawn."""
    dots: list[int] = []
    bonds: list[tuple[int, Hashable, Hashable]] = []
    legs: list[tuple[int, Hashable]] = []
    loops: list[tuple[int, Hashable]] = []
    ends_of: dict[int, list[Hashable]] = {label: [] for label in network.sizes}
    for k, own in enumerate(network.inputs):
        for label in own:
            ends_of[label].append(("tensor", k))
    for label, ends in ends_of.items():
        loose = network.output.count(label)
        if len(ends) == 2 and not loose:
            if ends[0] == ends[1]:
                loops.append((label, ends[0]))
            else:
                bonds.append((label, ends[0], ends[1]))
        elif len(ends) == loose == 1:
            legs.append((label, ends[0]))
        else:
            dots.append(label)
            bonds += [(label, end, ("dot", label)) for end in ends]
            legs += [(label, ("dot", label))] * loose
    return Wires(tuple(dots), tuple(bonds), tuple(legs), tuple(loops))


@dataclass
class _Picture:
    network: TensorNetwork
    nominal: Mapping[sympy.Symbol, int]
    without: str | None = None
    way: str = "auto"
    canvas: Canvas = field(default_factory=Canvas)
    taken: list[tuple[Point, float]] = field(default_factory=list)  # what labels keep clear of
    angles: dict[Hashable, list[float]] = field(default_factory=dict)

    def draw(self) -> Canvas:
        wires = wires_of(self.network)
        layout = self._layout(wires)
        for node, place in layout.positions.items():
            self.taken.append((place, RADIUS if self._is_tensor(node) else DOT))
            self.taken += [(spot, 0.1) for spot in self._name_box(node, place)]
        curves = self._bonds(wires, layout.positions)
        for label, node in wires.loops:
            self._loop(label, node, layout)
        for label, node in wires.legs:
            self._leg(label, node, layout)
        self._bond_labels(curves)
        for node, place in layout.positions.items():
            self._node(node, place)
        return self.canvas

    def _name_box(self, node: Hashable, place: Point) -> list[Point]:
        """Where a name that does not fit its circle stands out of it."""
        name = self.network.tensors[node[1]] if self._is_tensor(node) else ""  # type: ignore[index]
        half = text_size(name, 7.5)[0] / 2
        if not name or fitted(name)[1] >= 5.5:
            return []
        return [(place[0] + half * s, place[1]) for s in (-1, -0.75, 0.75, 1)]

    def _layout(self, wires: Wires) -> Layout:
        graph: nx.Graph = nx.Graph()
        kinds = self._kinds()
        nodes = [("tensor", k) for k in range(len(kinds))]
        graph.add_nodes_from([*nodes, *(("dot", label) for label in wires.dots)])
        for _, a, b in wires.bonds:
            both = self._is_tensor(a) and self._is_tensor(b)
            graph.add_edge(a, b, length=1.0 if both else 0.85)
        moving = [node for node in nodes if kinds[node[1]] in ("input", "intermediate")]
        return lay_out(graph, moving, self.way)

    def _kinds(self) -> list[str]:
        nodes = self.network.graph.nodes
        return [nodes[("tensor", k)]["kind"] for k in range(len(self.network.tensors))]

    @staticmethod
    def _is_tensor(node: Hashable) -> bool:
        return isinstance(node, tuple) and node[0] == "tensor"

    def _size(self, label: int) -> int:
        return evaluate(self.network.sizes[label], self.nominal)

    def _text(self, label: int) -> str:
        return f"{self.network.index_name(label)}:{self._size(label)}"

    def _line(self, points: Sequence[Point], label: int, role: str) -> None:
        size = self._size(label)
        width = min(0.9 + 0.33 * math.log2(max(size, 1)), 6.0)
        self.canvas.line(points, width, role, "-" if size else ":")

    # ---------------------------------------------------------------- bonds

    def _bonds(
        self, wires: Wires, places: Mapping[Hashable, Point]
    ) -> list[tuple[int, list[Point]]]:
        """Draw bonds, those of one pair of nodes fanned out; a dot's lines are labelled once."""
        pairs: dict[frozenset[Hashable], list[tuple[int, Hashable, Hashable]]] = {}
        for bond in wires.bonds:
            pairs.setdefault(frozenset(bond[1:]), []).append(bond)
        labelled: list[tuple[int, list[Point]]] = []
        spokes = {label for label, node in wires.legs if not self._is_tensor(node)}
        for bonds in pairs.values():
            for number, (label, a, b) in enumerate(bonds):
                straight = places[a] < places[b]
                bend = 0.55 * (number - (len(bonds) - 1) / 2)
                points = curve(places[a], places[b], bend if straight else -bend)
                others = [place for node, place in places.items() if node not in (a, b)]
                if len(bonds) == 1 and _hidden(points, others):
                    points = _around(places[a], places[b], others)
                self._line(points, label, "bond" if self._is_tensor(b) else "spoke")
                self.angles.setdefault(a, []).append(_angle(points[0], points[3]))
                self.angles.setdefault(b, []).append(_angle(points[-1], points[-4]))
                self.taken += [(point, 0.03) for point in points[4:-4]]
                if label not in spokes:
                    labelled.append((label, points))
                if not self._is_tensor(b):
                    spokes.add(label)
        return labelled

    def _bond_labels(self, curves: list[tuple[int, list[Point]]]) -> None:
        """Each label on its line, where it is clearest of the rest."""
        for label, points in curves:
            text = self._text(label)
            own = set(points)
            others = [(place, radius) for place, radius in self.taken if place not in own]
            half = text_size(text, LABEL)[0] / 2
            best = max(_SHIFTS, key=lambda shift: _room(points, shift, others, half))
            place = _along(points, best)
            self.canvas.text(place, text, LABEL, role="label", ground="white")
            self.taken += [((place[0] + half * s, place[1]), 0.08) for s in (-0.8, 0, 0.8)]

    # ---------------------------------------------------------------- legs, loops, nodes

    def _leg(self, label: int, node: Hashable, layout: Layout) -> None:
        """An open leg into the freest direction, its label beyond its end."""
        place, text = layout.positions[node], self._text(label)
        used, wish = self.angles.setdefault(node, []), layout.legs[node]
        width, height = text_size(text, LABEL)

        def label_at(angle: float) -> Point:
            x, y = math.cos(angle), math.sin(angle)
            reach = _LEG + 0.04 + abs(x) * width / 2 + abs(y) * height / 2
            return place[0] + reach * x, place[1] + reach * y

        def worth(angle: float) -> float:
            apart = min([abs(_turn(angle - other)) for other in used], default=math.pi)
            others = [(p, r) for p, r in self.taken if p != place]
            room = _clearance(label_at(angle), others, width / 2)
            middle = _clearance(_polar(place, angle, 0.8 * _LEG), others, 0.0)
            crowd = min(room, 0.15) + min(middle, 0.15)
            return 6 * crowd + min(apart, 0.78) + 0.5 * math.cos(angle - wish)

        angle = max(_ANGLES, key=lambda a: round(worth(a), 6))
        used.append(angle)
        end = _polar(place, angle, _LEG)
        self._line([place, end], label, "leg")
        centre = label_at(angle)
        self.canvas.text(centre, text, LABEL, role="label")
        self.taken += [((centre[0] + width / 2 * s, centre[1]), 0.08) for s in (-0.8, 0, 0.8)]
        self.taken += [(_polar(place, angle, _LEG * t), 0.03) for t in (0.6, 0.8, 1.0)]

    def _loop(self, label: int, node: Hashable, layout: Layout) -> None:
        """A trace: a line from a tensor to itself."""
        place, used = layout.positions[node], self.angles.setdefault(node, [])

        def apart(angle: float) -> float:
            gap = min([abs(_turn(angle - other)) for other in used], default=math.pi)
            return round(gap + 0.1 * math.cos(angle - layout.legs[node]), 6)

        angle = max(_ANGLES, key=apart)
        used += [angle - 0.5, angle, angle + 0.5]
        centre = _polar(place, angle, 0.38)
        ring = [_polar(centre, 2 * math.pi * k / 24, 0.24) for k in range(25)]
        self._line(ring, label, "bond")
        text = self._text(label)
        width, height = text_size(text, LABEL)
        sideways, upwards = abs(math.cos(angle)) * width / 2, abs(math.sin(angle)) * height / 2
        end = _polar(place, angle, 0.68 + sideways + upwards)
        self.canvas.text(end, text, LABEL, role="label")
        self.taken += [(end, width / 2), (centre, 0.24)]

    def _node(self, node: Hashable, place: Point) -> None:
        if not self._is_tensor(node):
            self.canvas.circle(place, DOT, "dot", "dot")
            return
        number: int = node[1]  # type: ignore[index]
        name = self.network.tensors[number]
        kind = "hole" if name == self.without else self._kinds()[number]
        self.canvas.circle(place, RADIUS, kind, "tensor")
        name_in_circle(self.canvas, name, place)


def curve(a: Point, b: Point, bend: float, count: int = 24) -> list[Point]:
    """Points from a to b along a parabola that leaves the straight line by `bend` at most half."""
    (ax, ay), (bx, by) = a, b
    length = math.hypot(bx - ax, by - ay) or 1.0
    mx, my = (ax + bx) / 2 - bend * (by - ay) / length, (ay + by) / 2 + bend * (bx - ax) / length
    points = []
    for k in range(count + 1):
        t = k / count
        u, v, w = (1 - t) ** 2, 2 * t * (1 - t), t**2
        points.append((u * ax + v * mx + w * bx, u * ay + v * my + w * by))
    return points


def _hidden(points: Sequence[Point], others: Sequence[Point]) -> bool:
    """Whether a line runs behind a node that is not its own."""
    return any(math.dist(point, place) < RADIUS + 0.06 for point in points for place in others)


def _around(a: Point, b: Point, others: Sequence[Point]) -> list[Point]:
    """The least bent line from a to b that passes the other nodes by."""
    lines = [curve(a, b, sign * bend) for bend in (0.7, 1.0, 1.4, 1.9) for sign in (1, -1)]
    return next((line for line in lines if not _hidden(line, others)), lines[0])


def _along(points: Sequence[Point], shift: float) -> Point:
    """The point of a line that is `shift` of its length past the middle."""
    return points[round((0.5 + shift) * (len(points) - 1))]


def _room(
    points: Sequence[Point], shift: float, others: Sequence[tuple[Point, float]], half: float
) -> float:
    """What a place for a label on a line is worth: clear of the rest, near the middle."""
    return min(_clearance(_along(points, shift), others, half), 0.2) - 0.1 * abs(shift)


def _polar(place: Point, angle: float, length: float) -> Point:
    return place[0] + length * math.cos(angle), place[1] + length * math.sin(angle)


def _angle(start: Point, end: Point) -> float:
    return math.atan2(end[1] - start[1], end[0] - start[0])


def _turn(angle: float) -> float:
    """The angle between -pi and pi."""
    return math.remainder(angle, 2 * math.pi)


def _clearance(place: Point, others: Sequence[tuple[Point, float]], half: float) -> float:
    """How far a label of width 2 * half stays from the rest; negative if it touches."""
    spots = [(place[0] + half * s, place[1]) for s in (-1, -0.5, 0, 0.5, 1)] if half else [place]
    gaps = [math.dist(spot, other) - radius for spot in spots for other, radius in others]
    return min(gaps, default=1.0) - (0.07 if half else 0.0)
