"""Join each value of a scan's body once, however often and in whatever order of axes it is read.

In: any program. Out: the same values: results that are transposes of one value are taken from that
value's positions, outside.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import (
    Contract,
    Labels,
    Pick,
    Program,
    Scan,
    Step,
    Value,
    canonical,
    operand_values,
)
from tncompiler.ir.scans.steps import emit_pick, has_scans


def share_results(program: Program) -> Program:
    """Joined results by what they are transposes of."""
    if not has_scans(program):
        return program
    builder = Builder(like=program)
    shared: dict[str, _Shared] = {}
    same: dict[str, Value] = {}  # results that are another one
    for step in program.steps:
        operands = [same.get(v.name, v) for v in operand_values(program, step)]
        if isinstance(step.op, Scan):
            found = _Shared(builder, step.op)
            if found.op is not step.op:
                shared[step.out.name] = found
                step = replace(step, op=found.op)
        own = shared.get(step.operands[0]) if isinstance(step.op, Pick) else None
        if own is None:
            builder.copy(step, operands)
        else:
            same[step.out.name] = own.take_out(step, operands[0])
    outputs = tuple(same[n].name if n in same else n for n in program.outputs)
    return program.with_steps(builder.steps, outputs)


class _Shared:
    """One scan: ``op`` joins every value once."""

    def __init__(self, builder: Builder, op: Scan) -> None:
        self.builder, self.source, self.picks = builder, op, dict[int, Value]()
        places: dict[object, int] = {}
        outputs: list[str] = []
        self.moved: dict[int, tuple[int, Labels]] = {}  # old position → new one, order of axes
        for k, name in enumerate(op.body.outputs):
            value = op.body.values[name]
            root, order = _root(op.body, name) if op.joined[k] == 0 else (name, _plain(value))
            place = places.setdefault(root if op.joined[k] == 0 else k, len(outputs))
            outputs += [root] if place == len(outputs) else []
            self.moved[k] = (place, order)
        new = replace(op.body, outputs=tuple(outputs))
        if new.outputs == op.body.outputs:
            self.op = op
            return
        kept = {place: op.joined[k] for k, (place, _) in reversed(self.moved.items())}
        joined = tuple(kept[place] for place in range(len(outputs)))
        self.op = replace(op, body=new, joined=joined)

    def take_out(self, step: Step, token: Value) -> Value:
        """What a Pick takes out: a value that is there already, or its transpose."""
        op: Pick = step.op  # type: ignore[assignment]
        place, order = self.moved[op.position]
        is_whole = self.source.joined[op.position] != 0 or order == _plain(step.out)[:-1]
        if is_whole and place not in self.picks:
            self.picks[place] = self.builder.copy(replace(step, op=Pick(place)), (token,))
        if place not in self.picks:
            self.picks[place] = emit_pick(self.builder, token, self.op, place)
        whole = self.picks[place]
        if is_whole:
            return whole
        labels = tuple(range(len(whole.shape)))
        moved = canonical(Contract((labels,), (0, *(axis + 1 for axis in order))))
        return self.builder.copy(Step(step.out, moved, ()), (whole,))


def _plain(value: Value) -> Labels:
    return tuple(range(len(value.shape)))


def _root(body: Program, name: str) -> tuple[str, Labels]:
    """What a value is a transpose of, and which axis of that each of its axes is."""
    order = _plain(body.values[name])
    while (step := body.producers.get(name)) is not None:
        op = step.op
        if not isinstance(op, Contract) or len(op.inputs) != 1:
            break
        (wires,) = op.inputs
        if sorted(wires) != sorted(op.output) or len(set(wires)) < len(wires):
            break
        order = tuple(wires.index(op.output[axis]) for axis in order)
        name = step.operands[0]
    return name, order
