"""How a contraction of two operands with windows is one convolution, or one transposed.

In: labels. Out: which operand is the data and which the weight, and the labels of the groups that
the backends' kernels know: data (m, g, c, positions…), weight (g, n, c, taps…), result (m, g, n,
positions…). A label that has no window may be a position with one tap, so that data lies as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.program import Convolve, Labels, Relation
from tncompiler.ir.sizes import Size

_MOST_AXES = 3  # of a vendor's convolution


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis that a convolution moves along; ``data`` and ``out`` are labels of positions.

    ``tap`` is the weight's label, None where there is one tap and nothing moves. Gathering, the
    data's position is out·step + tap·reach - before; scattering, the result's is
    data·step + tap·reach - before.
    """

    data: int
    out: int
    tap: int | None = None
    step: int = 1
    reach: int = 1
    before: Size = 0


@dataclass(frozen=True, slots=True)
class Form:
    """A convolution: ``data`` is the position of the data operand, the other one is the weight.

    ``scatters``: each position of the data adds to several of the result, as in a transposed
    convolution; otherwise each position of the result gathers several of the data.
    """

    data: int
    scatters: bool
    m: Labels
    g: Labels
    c: Labels
    n: Labels
    axes: tuple[Axis, ...]

    @property
    def data_order(self) -> Labels:
        return (*self.m, *self.g, *self.c, *(axis.data for axis in self.axes))

    @property
    def weight_order(self) -> Labels:
        taps = (axis.tap for axis in self.axes)
        return (*self.g, *self.n, *self.c, *(tap for tap in taps if tap is not None))

    @property
    def out_order(self) -> Labels:
        return (*self.m, *self.g, *self.n, *(axis.out for axis in self.axes))


@lru_cache(maxsize=1024)
def convolution_form(op: Convolve) -> Form | None:
    """The form of a contraction with windows; None if no single convolution does it."""
    if len(op.inputs) != 2 or any(len(set(w)) < len(w) for w in (*op.inputs, op.output)):
        return None
    scatters = {relation.labels[0] in op.output for relation in op.relations}
    for role, data in ((1, 0), (1, 1), (2, 0), (2, 1)):  # data rather carries windows than taps
        axes = [_axis(op, relation, data, role) for relation in op.relations]
        known = [axis for axis in axes if axis is not None]
        if len(known) == len(axes) and len(scatters) == 1:
            return _grouped(op, data, scatters.pop(), known)
    return None


def form_of(op: Convolve) -> Form:
    """The form of a scheduled convolution."""
    form = convolution_form(op)
    if form is None:
        raise InvalidProgram(f"'{op.text()}' was not scheduled")
    return form


def _axis(op: Convolve, relation: Relation, data: int, role: int) -> Axis | None:
    """The relation as an axis, if its labels are where this data operand needs them.

    ``role``: whether windows (1) or taps (2) are the positions beside the source.
    """
    geometry, source = relation.geometry, relation.labels[0]
    position, tap = relation.labels[role], relation.labels[3 - role]
    step, reach = (geometry.stride, geometry.dilation)[:: 1 if role == 1 else -1]
    places = [_places(op, label) for label in (source, position, tap)]
    if places == [{data}, {2}, {1 - data}]:
        return Axis(source, position, tap, step, reach, geometry.before)
    if places == [{2}, {data}, {1 - data}]:
        return Axis(position, source, tap, step, reach, geometry.before)
    return None


def _places(op: Convolve, label: int) -> set[int]:
    """The operands (0, 1) that carry a label, and the result (2)."""
    return {k for k, labels in enumerate((*op.inputs, op.output)) if label in labels}


def _grouped(op: Convolve, data: int, scatters: bool, axes: list[Axis]) -> Form | None:
    moving = {label for axis in axes for label in (axis.data, axis.out, axis.tap)}
    groups: dict[str, list[int]] = {"m": [], "g": [], "c": [], "n": []}
    kinds = {
        frozenset((data, 2)): "m",
        frozenset((0, 1, 2)): "g",
        frozenset((0, 1)): "c",
        frozenset((1 - data, 2)): "n",
    }
    for label in dict.fromkeys((*op.inputs[data], *op.inputs[1 - data], *op.output)):
        if label not in moving:
            kind = kinds.get(frozenset(_places(op, label)))
            if kind is None:
                return None
            groups[kind].append(label)
    ordered = _with_still_axes(op.inputs[data], axes, groups["m"])
    still = {axis.data for axis in ordered if axis.tap is None}
    m = tuple(label for label in groups["m"] if label not in still)
    g, c, n = (tuple(groups[kind]) for kind in "gcn")
    return Form(data, scatters, m, g, c, n, ordered)


def _with_still_axes(labels: Labels, axes: list[Axis], m: list[int]) -> tuple[Axis, ...]:
    """The axes in the data's order; labels beside them that need not go first stay among them."""
    moving = {axis.data: axis for axis in axes}
    mixed = [k for k, label in enumerate(labels) if label not in moving and label not in m]
    windows = [k for k, label in enumerate(labels) if label in moving]
    for first in (mixed[-1] + 1 if mixed else windows[0], windows[0]):
        rest = labels[first:]
        is_whole = first <= windows[0] and all(label in moving or label in m for label in rest)
        if is_whole and len(rest) <= _MOST_AXES:
            return tuple(moving.get(label) or Axis(label, label) for label in rest)
    return tuple(moving[label] for label in labels if label in moving)


def read_orders(op: Convolve) -> tuple[Labels, Labels]:
    """The order in which a scheduled convolution reads each operand; another one is copied."""
    form = form_of(op)
    orders = (form.data_order, form.weight_order)
    return orders if form.data == 0 else orders[::-1]


def natural_axes(op: Convolve) -> Labels:
    """The axes of a scheduled convolution's value in the order in which they are made."""
    place = {label: axis for axis, label in enumerate(op.output)}
    return tuple(place[label] for label in form_of(op).out_order)
