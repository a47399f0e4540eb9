"""Passes on scans: what nobody reads is not made, and what is the same at every position is made
once, before; what depends on no state, for all positions at once.

In: any program. Out: the same values, with less in the bodies of its scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import (
    Argument,
    Contract,
    Literal,
    Loop,
    Map,
    Op,
    Pick,
    Program,
    Scan,
    Step,
    Value,
    canonical,
    fresh_name,
    operand_values,
)
from tncompiler.ir.scans.steps import has_scans

Place = int | None  # the axis along which a value has positions; None: it has none, it is whole


def trim_scans(program: Program) -> Program:
    """Scans without results that nobody takes out, and without arguments that nobody reads."""
    for step in program.steps:
        if isinstance(step.op, Scan):
            program = _trimmed(program, step, step.op)
    return program


def _trimmed(program: Program, step: Step, op: Scan) -> Program:
    taken = {
        s.op.position
        for s in program.steps
        if isinstance(s.op, Pick) and s.operands[0] == step.out.name
    }
    kept = [k for k in range(len(op.joined)) if k < op.carried or k in taken]
    outputs = tuple(op.body.outputs[k] for k in kept)
    body = trim_scans(drop_dead_steps(replace(op.body, outputs=outputs)))
    read = {name for s in body.steps for name in s.operands} | set(outputs)
    arguments = [
        k
        for k, argument in enumerate(body.arguments)
        if k < op.carried or argument.value.name in read
    ]
    if body == op.body and len(arguments) == len(body.arguments):
        return program
    body = replace(body, arguments=tuple(body.arguments[k] for k in arguments))
    sliced, joined = (op.sliced[k] for k in arguments), (op.joined[k] for k in kept)
    slim = replace(op, body=body, sliced=tuple(sliced), joined=tuple(joined))
    operands = tuple(step.operands[k] for k in arguments)
    return program.with_steps(
        Step(s.out, slim, operands) if s is step else _moved(s, step.out.name, kept)
        for s in program.steps
    )


def _moved(step: Step, token: str, kept: Sequence[int]) -> Step:
    """A Pick of a scan that has only the results `kept`."""
    if isinstance(step.op, Pick) and step.operands[0] == token:
        return replace(step, op=Pick(kept.index(step.op.position)))
    return step


def hoist_invariants(program: Program) -> Program:
    """What depends on neither states nor slices is made before its scan."""
    return _hoisted(program, all_positions=False)


def hoist_from_scans(program: Program) -> Program:
    """And products and functions of slices are made for all positions at once, where they take
    memory for all; a scan then reads them position by position."""
    return _hoisted(program, all_positions=True)


def _hoisted(program: Program, *, all_positions: bool) -> Program:
    if not has_scans(program):
        return program
    builder = Builder(like=program)
    for step in program.steps:
        operands = operand_values(program, step)
        if isinstance(step.op, Scan):
            hoisting = _Hoisting(builder, step.op, operands, all_positions)
            step, operands = hoisting.rest(step)
        builder.copy(step, operands)
    return program.with_steps(builder.steps)


class _Hoisting:
    """One scan being relieved; ``outside`` are the body's values that are made before it."""

    def __init__(
        self, builder: Builder, op: Scan, operands: Sequence[Value], all_positions: bool
    ) -> None:
        self.builder, self.op, self.operands = builder, op, tuple(operands)
        self.all_positions = all_positions
        self.outside: dict[str, tuple[Value, Place]] = {}
        for k in range(op.carried, len(operands)):
            name = op.body.arguments[k].value.name
            self.outside[name] = (operands[k], op.sliced[k])
        self.numbers = {s.out.name: s for s in op.body.steps if isinstance(s.op, Literal)}

    def rest(self, step: Step) -> tuple[Step, tuple[Value, ...]]:
        """The scan with what is left in it, and its operands."""
        body = self.op.body
        given = set(self.outside)
        inside = [s for s in body.steps if not self._goes(s)]
        if len(inside) == len(body.steps):
            return step, self.operands
        read = {name for s in inside for name in s.operands} | set(body.outputs)
        new = [name for name in self.outside if name not in given and name in read]
        arguments = tuple(Argument(body.values[name], "saved") for name in new)
        slim = replace(body, arguments=(*body.arguments, *arguments), steps=tuple(inside))
        sliced = (*self.op.sliced, *(self.outside[name][1] for name in new))
        op = replace(self.op, body=slim, sliced=sliced)
        return replace(step, op=op), (*self.operands, *(self.outside[name][0] for name in new))

    def _goes(self, step: Step) -> bool:
        """Whether a step of the body is made before the scan; then it is."""
        known = all(name in self.outside or name in self.numbers for name in step.operands)
        if not known or isinstance(step.op, Literal | Loop | Scan | Pick):
            return False
        places = [self.outside[n][1] for n in step.operands if n in self.outside]
        if all(place is None for place in places):
            self._append(step, step.op, step.out, None)
            return True
        op = self._for_all(step) if self.all_positions else None
        if op is None:
            return False
        shape, axes = (self.op.size, *step.out.shape), (self.op.index, *step.out.axes)
        self._append(step, op, replace(step.out, shape=shape, axes=axes), 0)
        return True

    def _append(self, step: Step, op: Op, out: Value, place: Place) -> None:
        operands = [self._operand(name) for name in step.operands]
        out = replace(out, name=fresh_name(out.name, self.builder.taken))
        self.outside[step.out.name] = (self.builder.copy(Step(out, op, ()), operands), place)

    def _operand(self, name: str) -> Value:
        number = self.numbers.get(name)
        if number is None:
            return self.outside[name][0]
        out = replace(number.out, name=fresh_name(name, self.builder.taken))
        return self.builder.copy(replace(number, out=out), ())

    def _for_all(self, step: Step) -> Op | None:
        """The step with a new first axis for the positions; None where it only moves axes."""
        op, first = step.op, 0
        if isinstance(op, Contract):
            labels = {label for wires in op.inputs for label in wires}
            if (len(op.inputs) == 1 and labels <= set(op.output)) or not labels >= set(op.output):
                return None
            first = max(labels, default=-1) + 1
            wires = self._with_positions(step, op.inputs, first)
            return canonical(Contract(wires, (first, *op.output)))
        if isinstance(op, Map):
            later = tuple(tuple(label + 1 for label in wires) for wires in op.inputs)
            return Map(op.function, self._with_positions(step, later, first))
        return None

    def _with_positions(
        self, step: Step, inputs: Sequence[tuple[int, ...]], label: int
    ) -> tuple[tuple[int, ...], ...]:
        """Wires with the label of positions where an operand has them."""
        wires = []
        for name, own in zip(step.operands, inputs, strict=True):
            place = self.outside[name][1] if name in self.outside else None
            wires.append(own if place is None else (*own[:place], label, *own[place:]))
        return tuple(wires)
