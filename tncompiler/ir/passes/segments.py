"""Cut a scan into segments, so that a backward pass keeps the states between them only.

In: any program. Out: the same values, each scan of known length as a scan over segments of a scan
over the positions of one, and a scan over those that are left. Differentiated, the outer one keeps
its states, some √T, and makes one segment at a time again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import Argument, Pick, Program, Scan, Step, Value, operand_values
from tncompiler.ir.scans.steps import emit_pick, emit_scan

SHORTEST = 4  # positions; a shorter scan has nothing to gain


def segment_scans(program: Program) -> Program:
    """The scans of a program in about √T segments each; those inside others stay as they are."""
    builder = Builder(like=program)
    results: dict[str, list[Value]] = {}
    renamed: dict[str, Value] = {}
    for step in program.steps:
        operands = [renamed.get(v.name, v) for v in operand_values(program, step)]
        op = step.op
        if isinstance(op, Scan) and isinstance(op.size, int) and op.size >= SHORTEST:
            results[step.out.name] = _Segments(builder, op, op.size, operands).results()
        elif isinstance(op, Pick) and step.operands[0] in results:
            renamed[step.out.name] = results[step.operands[0]][op.position]
        else:
            builder.copy(step, operands)
    outputs = tuple(renamed[n].name if n in renamed else n for n in program.outputs)
    return program.with_steps(builder.steps, outputs)


@dataclass(frozen=True, slots=True)
class _Segments:
    """One scan of `total` positions being cut; what is left over comes last in time."""

    builder: Builder
    op: Scan
    total: int
    operands: Sequence[Value]

    @property
    def length(self) -> int:
        """Positions of a segment: √T, or a number near it that leaves nothing over."""
        root = math.isqrt(self.total)
        near = range(root, root // 2, -1)
        return next((length for length in near if self.total % length == 0), root)

    @property
    def count(self) -> int:
        return self.total // self.length

    def results(self) -> list[Value]:
        whole = self.count * self.length
        rest = self.total - whole
        main, left = (0, whole), (whole, self.total)
        if self.op.reverse:
            main, left = (rest, self.total), (0, rest)
        states = list(self.operands[: self.op.carried])
        first = self._outer(states, self._cut(*main))
        if not rest:
            return first
        op = replace(self.op, size=rest)
        last = self._run(op, first[: op.carried], self._cut(*left))
        return [self._joined(k, a, b) for k, (a, b) in enumerate(zip(first, last, strict=True))]

    def _cut(self, start: int, stop: int) -> list[Value]:
        """The operands after the states at some positions."""
        pairs = zip(self.operands, self.op.sliced, strict=True)
        later = list(pairs)[self.op.carried :]
        if stop - start == self.total:
            return [value for value, _ in later]
        return [v if a is None else self.builder.slice(v, a, start, stop) for v, a in later]

    def _run(self, op: Scan, states: Sequence[Value], rest: Sequence[Value]) -> list[Value]:
        token = emit_scan(self.builder, op, [*states, *rest])
        return [emit_pick(self.builder, token, op, k) for k in range(len(op.joined))]

    def _outer(self, states: Sequence[Value], rest: Sequence[Value]) -> list[Value]:
        """The scan over whole segments, results as if it were one over their positions."""
        op, axes = self.op, self.op.sliced[self.op.carried :]
        name, lengths = f"{op.index}_segment", (self.count, self.length)
        parts = [
            v if a is None else self.builder.split(v, a, lengths, (name, op.index))
            for v, a in zip(rest, axes, strict=True)
        ]
        outer = replace(op, body=self._segment(), index=name, size=self.count, keeps="states")
        made = self._run(outer, states, parts)
        size = self.count * self.length
        return [
            v if op.joined[k] is None else self.builder.merge(v, 0, 2, size, op.index)
            for k, v in enumerate(made)
        ]

    def _segment(self) -> Program:
        """One segment as a program."""
        op, inner = replace(self.op, size=self.length), Builder(prefix="segment")
        arguments = []
        for argument, axis in zip(op.body.arguments, op.sliced, strict=True):
            value = argument.value
            if axis is not None:
                shape, axes = list(value.shape), list(value.axes)
                shape.insert(axis, self.length)
                axes.insert(axis, op.index)
                value = replace(value, shape=tuple(shape), axes=tuple(axes))
            arguments.append(Argument(value, argument.kind))
            inner.argument(value, argument.kind)
        token = emit_scan(inner, op, [argument.value for argument in arguments])
        return inner.program([emit_pick(inner, token, op, k) for k in range(len(op.joined))])

    def _joined(self, k: int, first: Value, last: Value) -> Value:
        """A result of whole segments and of what comes after them in time."""
        if k < self.op.carried:
            return last
        if self.op.joined[k] is None:
            return self.builder.add([first, last])
        return self.builder.concat([last, first] if self.op.reverse else [first, last], 0)


def keep_states(program: Program) -> Program:
    """Scans whose backward pass is given the states before each position, and no more."""
    return _with_scans(program, keeps="states")


def write_traced(program: Program) -> Program:
    """Scans that a library can differentiate as they are written."""
    return _with_scans(program, traced=True)


def _with_scans(program: Program, **fields: object) -> Program:
    steps = []
    for step in program.steps:
        if isinstance(step.op, Scan):
            body = _with_scans(step.op.body, **fields)
            step = Step(step.out, replace(step.op, body=body, **fields), step.operands)  # type: ignore[arg-type]
        steps.append(step)
    return program.with_steps(steps)
