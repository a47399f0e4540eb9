"""The rules of Gather and Scatter by stage: lowered, validated, differentiated, lifted, written.

Both are linear in what they read or add, and each is the other's adjoint. A Scatter that takes the
largest is linear where no two are: its rules read back what it took, and share it among ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tncompiler.ir import algebra
from tncompiler.ir import gather_nodes as nodes
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import kind, real_part
from tncompiler.ir.errors import DTypeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.gather import Gather, Scatter, gathered, ids_places, new_axes, table_places
from tncompiler.ir.gather_nodes import check_integers
from tncompiler.ir.index import Index
from tncompiler.ir.program import Step, Value, fresh_name
from tncompiler.ir.sizes import Size
from tncompiler.ir.trace import Tracer

if TYPE_CHECKING:
    from tncompiler.ir.lower import _Lowering
    from tncompiler.ir.passes.adjoint import _Reverse
    from tncompiler.ir.passes.tangent import _Forward

# ---------------------------------------------------------------------------- expression → step


def lower_gather(low: _Lowering, node: nodes.Gather) -> Value:
    source, ids = low.operand(node.source), _positions(low, node.ids)
    op = gather_of(node)
    shape, axes = gathered(op, source.shape, ids.shape), gathered(op, source.axes, ids.axes)
    return low.builder.emit(op, (source, ids), shape, source.dtype, axes)


def lower_scatter(low: _Lowering, node: nodes.Scatter) -> Value:
    source, ids = low.operand(node.source), _positions(low, node.ids)
    if node.function != "sum" and kind(source.dtype) == "complex":
        raise DTypeError(
            f"scatter_{node.function} is not defined for {source.dtype} numbers",
            fix="take .real or .abs() first",
        )
    axes = tuple(index.name for index in node.indices)
    return low.builder.emit(scatter_of(node), (source, ids), low.shape(node), source.dtype, axes)


def _positions(low: _Lowering, ids: Expr) -> Value:
    value = low.operand(ids)
    check_integers(value.dtype, f"of the expression at {ids.origin}")
    return low.builder.cast(value, "int64")


def gather_of(node: nodes.Gather) -> Gather:
    """The step of an expression."""
    return Gather(node.axis, _shared(node.source.indices, node.ids.indices, node.axis))


def scatter_of(node: nodes.Scatter) -> Scatter:
    """The step of an expression."""
    shared = _shared(node.indices, node.ids.indices, node.axis)
    kept = tuple(None if k in node.summed else axis for k, axis in enumerate(shared))
    return Scatter(node.axis, kept, node.function)


def _shared(table: Sequence[Index], ids: Sequence[Index], axis: int) -> tuple[int | None, ...]:
    places = {index: k for k, index in enumerate(table) if k != axis}
    return tuple(places.get(index) for index in ids)


# ---------------------------------------------------------------------------- step → expression


def lift(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    """Both kinds: the ids' axes are called as those that they run along with."""
    source, ids = operands
    op = step.op
    if isinstance(op, Gather):
        taken = [index.name for index in source.indices]
        named = _ids_indices(op, ids, table=source.indices, taken=taken)
        return nodes.gather(source, source.indices[op.axis], algebra.reindex(ids, named))
    assert isinstance(op, Scatter)
    where = ids_places(op)
    at = algebra.reindex(ids, [source.indices[k] for k in where])
    taken = [index.name for index in source.indices]
    into = Index(fresh_name(step.out.axes[op.axis], taken), step.out.shape[op.axis])
    summed = [at.indices[k] for k in new_axes(op)]
    return nodes.scatter_at(source, at, into, summed, op.axis, op.function)


def _ids_indices(op: Gather, ids: Expr, *, table: Sequence[Index], taken: list[str]) -> list[Index]:
    found: list[Index] = []
    for axis, index in zip(op.shared, ids.indices, strict=True):
        if axis is None:
            name = fresh_name(index.name, taken)
            taken.append(name)
            found.append(Index(name, index.size))
        else:
            found.append(table[axis])
    return found


# ---------------------------------------------------------------------------- validation


def expected_shape(step: Step, operands: Sequence[Value]) -> tuple[Size, ...] | None:
    """The shape that the first operand of a Scatter, or the value of a Gather, must have.

    None if the fields do not fit the operands at all.
    """
    op = step.op
    assert isinstance(op, Gather | Scatter)
    if len(operands) != 2 or operands[1].dtype != "int64":
        return None
    table = operands[0] if isinstance(op, Gather) else step.out
    ids, rank = operands[1], len(table.shape)
    kept = [axis for axis in op.shared if axis is not None]
    distinct = len(set(kept)) == len(kept) and op.axis not in kept
    inside = all(0 <= axis < rank for axis in (op.axis, *kept))
    if len(op.shared) != len(ids.shape) or not distinct or not inside:
        return None
    if any(table.shape[a] != n for a, n in zip(op.shared, ids.shape, strict=True) if a is not None):
        return None
    return gathered(op, table.shape, ids.shape)


# ---------------------------------------------------------------------------- derivatives


def adjoint_gather(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    """What was read at a position goes back there."""
    table, ids = operands
    op: Gather = step.op  # type: ignore[assignment]
    back = Scatter(op.axis, op.shared)
    made = rev.builder.emit(back, (cotangent, ids), table.shape, cotangent.dtype, table.axes)
    rev.give(table, made)


def adjoint_scatter(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    """Each term of a sum receives what the sum received; of others, the largest."""
    source, ids = operands
    op: Scatter = step.op  # type: ignore[assignment]
    received = _read_back(rev.builder, op, cotangent, source, ids)
    if op.function == "max":
        share = _largest_share(rev.builder, op, step.out, source, ids)
        received = _product(rev.builder, share, received)
    rev.give(source, received)


def tangent(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    """The same step on what moves; of the largest, the sum of what moves at them."""
    source, ids = operands
    moved = fwd.of(source)
    if moved is None:
        return None
    op, out = step.op, step.out
    if isinstance(op, Scatter) and op.function == "max":
        share = _largest_share(fwd.builder, op, out, source, ids)
        op, moved = replace(op, function="sum"), _product(fwd.builder, share, moved)
    return fwd.builder.emit(op, (moved, ids), out.shape, out.dtype, out.axes)


def _read_back(builder: Builder, op: Scatter, table: Value, source: Value, ids: Value) -> Value:
    """What stands at the position of each value of the source."""
    back = Gather(op.axis, op.shared)
    return builder.emit(back, (table, ids), source.shape, table.dtype, source.axes)


def _largest_share(builder: Builder, op: Scatter, out: Value, source: Value, ids: Value) -> Value:
    """1 over the number of ties where a value is the largest of its position, elsewhere 0."""
    tracer = Tracer(builder, source, real_part(source.dtype))
    top = tracer.wrap(_read_back(builder, op, out, source, ids))
    hit = tracer.call("where", tracer.call("equal", tracer.wrap(source), top), 1.0, 0.0)
    add = replace(op, function="sum")
    ties = builder.emit(add, (hit.value, ids), out.shape, hit.value.dtype, out.axes)
    share: Value = (hit / tracer.wrap(_read_back(builder, op, ties, source, ids))).value
    return share


def _product(builder: Builder, share: Value, value: Value) -> Value:
    labels = tuple(range(len(share.shape)))
    return builder.contract((share, value), (labels,) * 2, labels, share.shape, share.axes)


# ---------------------------------------------------------------------------- slicing


def places(op: Gather | Scatter, ranks: Sequence[int]) -> list[tuple[int | None, ...]]:
    """For each operand, the output axis of each of its axes."""
    if isinstance(op, Gather):
        return [table_places(op, ranks[0]), ids_places(op)]
    table_rank = ranks[0] - len(new_axes(op)) + 1
    back = {axis: k for k, axis in enumerate(table_places(op, table_rank)) if axis is not None}
    return [tuple(back.get(axis) for axis in range(ranks[0])), op.shared]


# ---------------------------------------------------------------------------- JSON


def fields(node: nodes.Gather | nodes.Scatter) -> dict[str, Any]:
    """What is particular to a node, for JSON."""
    if isinstance(node, nodes.Gather):
        return {"axis": node.axis}
    return {"axis": node.axis, "summed": list(node.summed), "function": node.function}


def read_gather(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    source, ids = operands
    return nodes.gather(source, source.indices[_position(data["axis"])], ids)


def read_scatter(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    values, ids = operands
    summed = [ids.indices[_position(axis)] for axis in data["summed"]]
    axis, function = _position(data["axis"]), data.get("function", "sum")
    if function not in nodes.NAMES:
        raise ValueError(f"a scatter that makes {function!r:.40} is not known")
    return nodes.scatter_at(values, ids, indices[axis], summed, axis, function)


def _position(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no axis")
    return value
