"""Steps of scans → expressions: each argument of the body becomes a slot."""

from __future__ import annotations

from collections.abc import Sequence

from tncompiler.ir import expressions as ex
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.program import Pick, Program, Scan, Step, Value, fresh_name
from tncompiler.ir.scans.make import scan_results, slot


def lift_scan(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    """The scan's node; `lift_pick` takes results out of it."""
    from tncompiler.ir.lift import lift  # that table names this function

    op: Scan = step.op  # type: ignore[assignment]
    over = Index(fresh_name(op.index, _names(op.body)), op.size)
    arguments = [argument.value for argument in op.body.arguments]
    slots = [slot(f"slot {k}", _indices(value)) for k, value in enumerate(arguments)]
    given = dict(zip((value.name for value in arguments), slots, strict=True))
    return ex.Scan(
        (),
        over,
        tuple(operands),
        tuple(slots),
        lift(op.body, given),
        op.carried,
        op.sliced,
        op.joined,
        op.reverse,
    )


def lift_pick(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    """A result of a scan."""
    op: Pick = step.op  # type: ignore[assignment]
    node: ex.Scan = operands[0]  # type: ignore[assignment]
    return scan_results(node)[op.position]


def _names(program: Program) -> set[str]:
    return {axis for value in program.values.values() for axis in value.axes}


def _indices(value: Value) -> tuple[Index, ...]:
    taken: list[str] = []
    for axis in value.axes:
        taken.append(fresh_name(axis, taken))
    return tuple(Index(name, size) for name, size in zip(taken, value.shape, strict=True))
