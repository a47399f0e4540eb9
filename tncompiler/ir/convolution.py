"""How a contraction of two operands with windows is one convolution, or one transposed.

In: labels. Out: which operand is the data and which the weight, and the labels of the groups that
the backends' kernels know, in the orders in which they read and make them: channels before the
positions, or last. A label that has no window may be a position with one tap, so that data lies as
it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.program import Convolve, Labels, Relation
from tncompiler.ir.sizes import Size

_MOST_AXES = 2  # beside one another where some only stay: in three, libraries are slow


GATHER, SCATTER, KERNEL = "gather", "scatter", "kernel"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis that a convolution moves along; ``data`` and ``out`` are labels of positions.

    ``tap`` is the weight's label, None where there is one tap and nothing moves. The data's
    position is out·step + tap·reach - before; scattering, the result's is
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

    ``kind``: GATHER where each position of the result reads several of the data; SCATTER where
    each position of the data adds to several of the result, as in a transposed convolution;
    KERNEL where taps are windows and the result is a kernel, as in its gradient. Data and weight
    share ``g`` and ``c``, of which ``c`` is summed; ``m`` is on the data, ``n`` on the weight.
    """

    data: int
    kind: str
    m: Labels
    g: Labels
    c: Labels
    n: Labels
    axes: tuple[Axis, ...]

    @property
    def data_blocks(self) -> list[Labels]:
        """The groups of the data's labels in the order in which they are read."""
        groups = [self.c, self.g, self.m] if self.kind == KERNEL else [self.m, self.g, self.c]
        return [*groups, *((axis.data,) for axis in self.axes)]

    @property
    def weight_blocks(self) -> list[Labels]:
        """The groups of the weight's labels; none where an axis has one tap."""
        groups = [self.c, self.g, self.n] if self.kind == KERNEL else [self.g, self.n, self.c]
        return [*groups, *(() if axis.tap is None else (axis.tap,) for axis in self.axes)]

    @property
    def out_blocks(self) -> list[Labels]:
        """The groups of the result's labels as they are made."""
        groups = [self.g, self.n, self.m] if self.kind == KERNEL else [self.m, self.g, self.n]
        return [*groups, *((axis.out,) for axis in self.axes)]

    @property
    def images(self) -> tuple[int, ...]:
        """The operands with positions; the other one, if there is one, is a kernel."""
        return (0, 1) if self.kind == KERNEL else (self.data,)

    def read_orders(self, *, last: bool) -> tuple[Labels, Labels]:
        """The orders in which the operands are read as they lie; other ones are copied.

        ``last``: with channels after the positions. A kernel, which is small, has its own order;
        where it is the result, both operands are images.
        """
        data = joined(_channels_last(self.data_blocks) if last else self.data_blocks)
        weight = self.weight_blocks
        weight = _channels_last(weight) if last and self.kind == KERNEL else weight
        orders = (data, joined(weight))
        return orders if self.data == 0 else orders[::-1]

    def made_order(self, *, last: bool) -> Labels:
        """The order in which the result is made."""
        blocks = self.out_blocks
        return joined(_channels_last(blocks) if last and self.kind != KERNEL else blocks)


def _channels_last(blocks: list[Labels]) -> list[Labels]:
    """The groups of an image with its positions before its channels."""
    batch, *channels = blocks[:3]
    return [batch, *blocks[3:], *channels]


@lru_cache(maxsize=1024)
def convolution_form(op: Convolve) -> Form | None:
    """The form of a contraction with windows; None if no single convolution does it."""
    if len(op.inputs) != 2 or any(len(set(w)) < len(w) for w in (*op.inputs, op.output)):
        return None
    kinds = {SCATTER if r.labels[0] in op.output else GATHER for r in op.relations}
    for role, data in ((1, 0), (1, 1), (2, 0), (2, 1)):  # data rather carries windows than taps
        axes = [_axis(op, relation, data, role) for relation in op.relations]
        known = [axis for axis in axes if axis is not None]
        if len(known) == len(axes) and len(kinds) == 1:
            (kind,) = kinds
            return _grouped(op, data, KERNEL if (kind, role) == (GATHER, 2) else kind, known)
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


def _grouped(op: Convolve, data: int, kind: str, axes: list[Axis]) -> Form | None:
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
            group = kinds.get(frozenset(_places(op, label)))
            if group is None:
                return None
            groups[group].append(label)
    free = [] if kind == KERNEL else groups["m"]
    ordered = _with_still_axes(op.inputs[data], axes, free)
    still = {axis.data for axis in ordered if axis.tap is None}
    m = tuple(label for label in groups["m"] if label not in still)
    g, c, n = (tuple(groups[name]) for name in "gcn")
    return Form(data, kind, m, g, c, n, ordered)


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


def has_channels_last(op: Convolve) -> bool:
    """Whether a scheduled convolution's data lies with its channels after the positions."""
    form = form_of(op)
    first, last = (form.read_orders(last=last)[form.data] for last in (False, True))
    return op.inputs[form.data] == last != first


def natural_axes(op: Convolve) -> list[Labels]:
    """The axes of a scheduled convolution's value in the orders in which they can be made.

    That which goes with the order of the data comes first.
    """
    form, place = form_of(op), {label: axis for axis, label in enumerate(op.output)}
    is_last = has_channels_last(op)
    orders = [form.made_order(last=last) for last in (is_last, not is_last)]
    return [tuple([place[label] for label in order]) for order in dict.fromkeys(orders)]


def joined(blocks: Iterable[Labels]) -> Labels:
    """The labels of all blocks, one after the other."""
    return tuple(label for block in blocks for label in block)
