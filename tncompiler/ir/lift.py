"""Logical program → expressions: positions become indices again, with fresh names where needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tncompiler.ir import algebra
from tncompiler.ir import expressions as ex
from tncompiler.ir.arange import Arange, Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import body_of
from tncompiler.ir.expressions import Expr
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_rules import lift as lift_gather
from tncompiler.ir.index import Index
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.pairs_rules import lift as lift_pairs
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Literal,
    Map,
    Merge,
    Pad,
    Permute,
    Pick,
    Program,
    Reduce,
    Scan,
    Slice,
    Split,
    Step,
    Value,
    Window,
    fresh_name,
    label_names,
    label_sizes,
    operand_values,
)
from tncompiler.ir.scans.lift import lift_pick, lift_scan


def lift(program: Program, leaves: Mapping[str, Expr]) -> tuple[Expr, ...]:
    """The outputs as expressions; `leaves` gives the expression of each argument."""
    done: dict[str, Expr] = dict(leaves)
    for step in program.steps:
        operands = [done[name] for name in step.operands]
        done[step.out.name] = _RULES[type(step.op)](step, operands, operand_values(program, step))
    return tuple(done[name] for name in program.outputs)


def _indices(value: Value) -> tuple[Index, ...]:
    """Fresh indices for the axes of a value, distinct by name."""
    taken: list[str] = []
    for axis in value.axes:
        taken.append(fresh_name(axis, taken))
    return tuple(Index(name, size) for name, size in zip(taken, value.shape, strict=True))


def _contract(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Contract = step.op  # type: ignore[assignment]
    names, sizes = label_names(op, values, step.out), label_sizes(op, values, step.out)
    index = {label: Index(names[label], sizes[label]) for label in names}
    taken = set(names.values())
    terms: list[Expr] = []

    def spread(labels: Sequence[int]) -> tuple[Index, ...]:
        """An index per axis; a repeated label gets a new index joined by a delta."""
        used: list[Index] = []
        for label in labels:
            wanted = index[label]
            if wanted in used:
                name = fresh_name(wanted.name, taken)
                taken.add(name)
                twin = Index(name, wanted.size)
                terms.append(algebra.delta(wanted, twin))
                wanted = twin
            used.append(wanted)
        return tuple(used)

    for expr, labels in zip(operands, op.inputs, strict=True):
        terms.append(algebra.reindex(expr, spread(labels)))
    carried = {label for labels in op.inputs for label in labels}
    broadcast = [index[label] for label in dict.fromkeys(op.output) if label not in carried]
    if broadcast:
        terms.append(algebra.ones(*broadcast))
    out = spread(op.output)
    return algebra.contract(*terms, out=out)


def _map(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Map = step.op  # type: ignore[assignment]
    out = _indices(step.out)
    wired = tuple(
        algebra.reindex(expr, [out[label] for label in labels])
        for expr, labels in zip(operands, op.inputs, strict=True)
    )
    return ex.Map(out, op.function, wired)


def _window(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Window = step.op  # type: ignore[assignment]
    return ex.Window(_indices(step.out), op.geometry)


def _reduce(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Reduce = step.op  # type: ignore[assignment]
    (source,) = operands
    return algebra.reduce_over(op.function, source, [source.indices[axis] for axis in op.axes])


def _permute(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Permute = step.op  # type: ignore[assignment]
    return algebra.permute(operands[0], op.axes)


def _split(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Split = step.op  # type: ignore[assignment]
    out = _indices(step.out)
    parts = out[op.axis : op.axis + op.count]
    source = algebra.reindex(operands[0], _around(out, op.axis, op.count, values[0]))
    return algebra.split(source, source.indices[op.axis], parts)


def _merge(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Merge = step.op  # type: ignore[assignment]
    (source,) = operands
    others = {index.name for index in source.indices}
    wanted = step.out.axes[op.axis]
    into = Index(fresh_name(wanted, others), step.out.shape[op.axis])
    return algebra.merge(source, source.indices[op.axis : op.axis + op.count], into)


def _around(out: tuple[Index, ...], axis: int, count: int, source: Value) -> tuple[Index, ...]:
    """The indices of a split's source: those of the result, with one index for its parts."""
    name = fresh_name(source.axes[axis], {index.name for index in out})
    return (*out[:axis], Index(name, source.shape[axis]), *out[axis + count :])


def _slice(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Slice = step.op  # type: ignore[assignment]
    (source,) = operands
    return algebra.slice_index(source, source.indices[op.axis], op.start, op.stop)


def _pad(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Pad = step.op  # type: ignore[assignment]
    (source,) = operands
    return algebra.pad(source, source.indices[op.axis], op.before, op.after)


def _concat(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Concat = step.op  # type: ignore[assignment]
    out = _indices(step.out)
    parts = []
    for expr, value in zip(operands, values, strict=True):
        own = Index(out[op.axis].name, value.shape[op.axis])
        parts.append(algebra.reindex(expr, (*out[: op.axis], own, *out[op.axis + 1 :])))
    return algebra.concat(parts, out[op.axis])


def _literal(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op: Literal = step.op  # type: ignore[assignment]
    return ex.Literal((), op.value)


def _cast(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    return ex.Cast(operands[0].indices, operands[0], step.out.dtype)


def _positions(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    return Arange(_indices(step.out))


def _attention(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    body = body_of(step, values)
    names = [argument.value.name for argument in body.arguments]
    return lift(body, dict(zip(names, operands, strict=True)))[0]


_RULES: dict[type, Callable[[Step, Sequence[Expr], Sequence[Value]], Expr]] = {
    Contract: _contract,
    Window: _window,
    Map: _map,
    Reduce: _reduce,
    Permute: _permute,
    Split: _split,
    Merge: _merge,
    Slice: _slice,
    Pad: _pad,
    Concat: _concat,
    Literal: _literal,
    Cast: _cast,
    Pairs: lift_pairs,
    PairsAdjoint: lift_pairs,
    Positions: _positions,
    Attention: _attention,
    Gather: lift_gather,
    Scatter: lift_gather,
    Scan: lift_scan,
    Pick: lift_pick,
}
