"""Scans → steps: the body becomes a program of its own, its leaves the program's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tncompiler.ir import expressions as ex
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import DEFAULT, promote
from tncompiler.ir.program import Program, Scan, Value, fresh_name
from tncompiler.ir.scans.steps import emit_pick, emit_scan

if TYPE_CHECKING:
    from tncompiler.ir.lower import _Lowering


def lower_scan(low: _Lowering, node: ex.Scan) -> Value:
    """The scan's step; only its results' steps read it."""
    operands = [low.operand(argument) for argument in node.arguments]
    dtypes = [value.dtype for value in operands]
    body = _body(low, node, operands, dtypes)
    while True:  # a state has the dtype that its first value and every later one fit in
        made = [body.values[name].dtype for name in body.outputs[: node.carried]]
        states = [promote(*pair) for pair in zip(dtypes, made, strict=False)]
        if states == dtypes[: node.carried]:
            break
        dtypes[: node.carried] = states
        body = _body(low, node, operands, dtypes)
    pairs = zip(operands, dtypes, strict=True)
    operands = [_as_dtype(low.builder, value, dtype) for value, dtype in pairs]
    index, size = node.over.name, low.size(node.over.size)
    op = Scan(body, index, size, node.carried, node.sliced, node.joined, node.reverse)
    return emit_scan(low.builder, op, operands)


def lower_scan_result(low: _Lowering, node: ex.ScanResult) -> Value:
    """One result of a scan."""
    token = low.done[id(node.source)]
    step = next(s for s in reversed(low.builder.steps) if s.out.name == token.name)
    op: Scan = step.op  # type: ignore[assignment]
    return emit_pick(low.builder, token, op, node.position)


def _body(
    low: _Lowering, node: ex.Scan, operands: Sequence[Value], dtypes: Sequence[str]
) -> Program:
    """The cell as a program whose arguments have these dtypes."""
    inner = low.within()
    for position, (own, value) in enumerate(zip(node.slots, operands, strict=True)):
        shape, axis = list(value.shape), node.sliced[position]
        if axis is not None:
            shape.pop(axis)
        names = tuple(index.name for index in own.indices)
        called = fresh_name(_wanted_name(node, position), inner.builder.taken)
        inner.declare_as(own, Value(called, tuple(shape), dtypes[position], names))
    inner.nodes(node.body)
    outputs = [inner.operand(output) for output in node.body]
    states = [
        _as_dtype(inner.builder, output, dtype) if promote(output.dtype, dtype) == dtype else output
        for output, dtype in zip(outputs, dtypes[: node.carried], strict=False)
    ]
    low.builder.equations += inner.builder.equations
    inner.builder.equations = []
    return inner.builder.program([*states, *outputs[node.carried :]])


def _as_dtype(builder: Builder, value: Value, dtype: str) -> Value:
    """The value in another dtype; an undecided one is left as it is."""
    return value if DEFAULT in (value.dtype, dtype) else builder.cast(value, dtype)


def _wanted_name(node: ex.Scan, position: int) -> str:
    """What an argument of the body is called in generated code."""
    if position < node.carried:
        return f"state{position}"
    given, sliced = node.arguments[position], node.sliced[position] is not None
    called = given.name if isinstance(given, ex.Leaf) else f"input{position - node.carried}"
    return f"{called}_{node.over.name}" if sliced else called
