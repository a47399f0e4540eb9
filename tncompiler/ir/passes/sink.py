"""Make sums over a scan's positions after it, as one product over all positions.

In: a program. Out: the same values: where a scan adds up products of what it reads by position or
joins anyway, the product is taken once, over the joined values. A gradient of a weight that every
position reads is one large matrix product then, not one small one a position.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import (
    Contract,
    Pick,
    Program,
    Scan,
    Step,
    Value,
    canonical,
    operand_values,
)
from tncompiler.ir.scans.steps import emit_pick, has_scans


def sink_sums(program: Program) -> Program:
    """Sink every sum that needs nothing joined that is not joined already."""
    return _sunk(program, join=False)


def sink_all_sums(program: Program) -> Program:
    """Sink every sum of products, joining what they are products of."""
    return _sunk(program, join=True)


def _sunk(program: Program, *, join: bool) -> Program:
    if not has_scans(program):
        return program
    builder = Builder(like=program)
    sinking: dict[str, _Sinking] = {}
    for step in program.steps:
        operands = operand_values(program, step)
        if isinstance(step.op, Scan):
            sunk = _Sinking(builder, step.op, operands, join)
            sinking[step.out.name] = sunk
            step = replace(step, op=sunk.op)
        own = sinking.get(step.operands[0]) if isinstance(step.op, Pick) else None
        if own is None or not own.make(step, operands[0]):
            builder.copy(step, operands)
    return program.with_steps(builder.steps)


class _Sinking:
    """One scan: ``op`` joins what its sums need; `make` writes them down after it."""

    def __init__(self, builder: Builder, op: Scan, operands: tuple[Value, ...], join: bool) -> None:
        self.builder, self.operands, self.source = builder, operands, op
        self.joined = {n: k for k, n in enumerate(op.body.outputs) if op.joined[k] == 0}
        self.arguments = {a.value.name: k for k, a in enumerate(op.body.arguments)}
        self.uses = op.body.uses()
        self.sums = {
            k: step
            for k, name in enumerate(op.body.outputs)
            if k >= op.carried and op.joined[k] is None and (step := self._product(name, join))
        }
        needed = [n for step in self.sums.values() for n in step.operands]
        new = [n for n in dict.fromkeys(needed) if not self._is_at_hand(n)]
        self.joined.update((n, k) for k, n in enumerate(new, len(op.body.outputs)))
        body = replace(op.body, outputs=(*op.body.outputs, *new))
        self.op = replace(op, body=body, joined=(*op.joined, *(0 for _ in new)))

    def _product(self, name: str, join: bool) -> Step | None:
        """The step that makes a sum's parts, if it can be made for all positions at once."""
        step = self.source.body.producers.get(name)
        if step is None or not isinstance(step.op, Contract) or self.uses[name] > 1:
            return None
        ready = all(join or self._is_at_hand(operand) for operand in step.operands)
        return step if ready and step.operands else None

    def _is_at_hand(self, name: str) -> bool:
        position = self.arguments.get(name)
        return name in self.joined or (position is not None and position >= self.source.carried)

    def make(self, step: Step, token: Value) -> bool:
        """Write a result as a product over all positions, if it is one of those sums."""
        made = self.sums.get(step.op.position)  # type: ignore[union-attr]
        if made is None:
            return False
        op: Contract = made.op  # type: ignore[assignment]
        label = 1 + max((k for wires in (*op.inputs, op.output) for k in wires), default=-1)
        values, inputs = [], []
        for name, wires in zip(made.operands, op.inputs, strict=True):
            value, axis = self._all_positions(name, token)
            values.append(value)
            inputs.append(wires if axis is None else (*wires[:axis], label, *wires[axis:]))
        new = canonical(Contract(tuple(inputs), op.output))
        self.builder.copy(Step(step.out, new, ()), values)
        return True

    def _all_positions(self, name: str, token: Value) -> tuple[Value, int | None]:
        """A value of the body at all positions, and the axis along which they are."""
        if name in self.joined:
            return emit_pick(self.builder, token, self.op, self.joined[name]), 0
        position = self.arguments[name]
        return self.operands[position], self.source.sliced[position]
