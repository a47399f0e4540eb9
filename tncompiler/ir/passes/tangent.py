"""Forward-mode differentiation, Program → Program: one rule per step kind.

In: any valid program. Out: the same program with a tangent argument for each chosen argument and,
as further outputs, the tangent of each output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import tangent_attention
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import real_part
from tncompiler.ir.functions import function
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_rules import tangent as tangent_of_gather
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.pairs_rules import tangent as tangent_of_pairs
from tncompiler.ir.passes.adjoint import reachable_from, tie_shares
from tncompiler.ir.passes.window_rules import convolve_tangent, window_tangent
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Convolve,
    Fold,
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
    Unfold,
    Value,
    Window,
    fresh_name,
    operand_values,
)
from tncompiler.ir.scans.steps import active_arguments
from tncompiler.ir.scans.tangent import scan_tangents
from tncompiler.ir.stacking import Member
from tncompiler.ir.trace import Traced, Tracer


def tangent(program: Program, wrt: Sequence[str], *, keep_outputs: bool = True) -> Program:
    """Append the tangents of all outputs along tangents of the arguments named in `wrt`."""
    forward = _Forward(program, wrt)
    for step in program.steps:
        forward.step(step)
    outputs = [program.values[name] for name in program.outputs]
    moved = [forward.tangents.get(o.name) or forward.builder.zeros(o) for o in outputs]
    return forward.builder.program([*(outputs if keep_outputs else ()), *moved])


class _Forward:
    def __init__(self, program: Program, wrt: Sequence[str]) -> None:
        self.program = program
        self.builder = Builder(like=program)
        self.active = reachable_from(program, wrt)
        self.tangents: dict[str, Value] = {}
        self.results: dict[str, dict[int, Value]] = {}  # tangents of what scans give
        for name in wrt:
            leaf = program.values[name]
            moved = Value(
                fresh_name(f"d_{name.replace('.', '_')}", program.values),
                leaf.shape,
                leaf.dtype,
                leaf.axes,
            )
            self.tangents[name] = self.builder.argument(moved, "tangent")

    def step(self, step: Step) -> None:
        operands = operand_values(self.program, step)
        self.builder.copy(step, operands)
        if isinstance(step.op, Scan):
            self._scan(step, step.op, operands)
        if step.out.name in self.active:
            moved = TANGENT_RULES[type(step.op)](self, step, operands)
            if moved is not None:
                self.tangents[step.out.name] = moved

    def _scan(self, step: Step, op: Scan, operands: tuple[Value, ...]) -> None:
        active = active_arguments(op, operands, self.active)
        if active:
            given = zip(op.body.arguments, operands, strict=True)
            value_of = {argument.value.name: operand for argument, operand in given}
            moved = {name: self._moved(value_of[name]) for name in active}
            made = scan_tangents(self.builder, step.out, op, operands, moved, _tangents)
            self.results[step.out.name] = made

    def _moved(self, value: Value) -> Value:
        return self.of(value) or self.builder.zeros(value)

    def of(self, value: Value) -> Value | None:
        return self.tangents.get(value.name)


def _contract(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    """The product rule: one term per moving operand."""
    op: Contract = step.op  # type: ignore[assignment]
    terms = []
    for position, operand in enumerate(operands):
        moved = fwd.of(operand)
        if moved is not None:
            values = [*operands[:position], moved, *operands[position + 1 :]]
            terms.append(
                fwd.builder.contract(values, op.inputs, op.output, step.out.shape, step.out.axes)
            )
    return fwd.builder.add(terms) if terms else None


def _map(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    op: Map = step.op  # type: ignore[assignment]
    rule = function(op.function)
    tracer = Tracer(fwd.builder, step.out, real_part(step.out.dtype))
    traced = [tracer.wrap(v, labels) for v, labels in zip(operands, op.inputs, strict=True)]
    out = tracer.wrap(step.out)
    moved: list[Traced | float] = []
    for operand, labels in zip(operands, op.inputs, strict=True):
        t = fwd.of(operand)
        moved.append(0.0 if t is None else tracer.wrap(t, labels))
    if rule.tangent is not None:
        return _full(tracer, rule.tangent(tracer.call, moved, *traced, out)).value
    terms = [
        _full(tracer, tracer.multiply(t, partial(tracer.call, *traced, out))).value
        for t, partial in zip(moved, rule.partials or (), strict=True)
        if isinstance(t, Traced) and partial is not None
    ]
    return fwd.builder.add(terms) if terms else None


def _full(tracer: Tracer, traced: Traced) -> Traced:
    """Widened to all axes of the step's value."""
    return tracer.multiply(traced, keep=tuple(range(len(tracer.shape_of.shape))))


def _reduce(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    op: Reduce = step.op  # type: ignore[assignment]
    (source,) = operands
    moved = fwd.of(source)
    if moved is None:
        return None
    kept = tuple(axis for axis in range(len(source.shape)) if axis not in op.axes)
    tracer = Tracer(fwd.builder, source, real_part(source.dtype))
    share = tie_shares(tracer, tracer.wrap(source), tracer.wrap(step.out, kept))
    return tracer.multiply(tracer.wrap(moved), share, keep=kept).value


def _linear(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    """A view moves as its operand does."""
    tangents = [fwd.of(operand) for operand in operands]
    if all(t is None for t in tangents):
        return None
    values = [
        fwd.builder.zeros(operand) if t is None else t
        for t, operand in zip(tangents, operands, strict=True)
    ]
    return fwd.builder.emit(step.op, values, step.out.shape, step.out.dtype, step.out.axes)


def _tangents(program: Program, wrt: Sequence[str]) -> Program:
    return tangent(program, wrt)


def _pick(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    op: Pick = step.op  # type: ignore[assignment]
    return fwd.results.get(operands[0].name, {}).get(op.position)


def _literal(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    return None


TANGENT_RULES: dict[type, Callable[..., Value | None]] = {
    Contract: _contract,
    Map: _map,
    Reduce: _reduce,
    Permute: _linear,
    Split: _linear,
    Merge: _linear,
    Slice: _linear,
    Pad: _linear,
    Concat: _linear,
    Member: _linear,
    Cast: _linear,
    Literal: _literal,
    Convolve: convolve_tangent,
    Unfold: _linear,
    Fold: _linear,
    Window: window_tangent,
    Pairs: tangent_of_pairs,
    PairsAdjoint: tangent_of_pairs,
    Positions: _literal,
    Attention: tangent_attention,
    Gather: tangent_of_gather,
    Scatter: tangent_of_gather,
    Pick: _pick,
}
