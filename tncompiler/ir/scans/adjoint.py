"""The adjoint of a scan is a scan from the other end, which adds up gradients of what all read.

The body is differentiated and cut as a whole program is: what its backward half needs is kept at
every position by the forward scan, as further results, and read by the backward scan; what is not
kept is made again there. Cotangents of the states are the states of the backward scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.partition import TrainingPrograms, partition
from tncompiler.ir.program import Pick, Program, Scan, Step, Value, fresh_name
from tncompiler.ir.scans.steps import emit_pick, emit_scan, result_value

Differentiate = Callable[[Program, Sequence[str]], Program]


@dataclass(frozen=True, slots=True)
class ScanAdjoint:
    """One scan being reversed: ``received`` are cotangents of its results by position."""

    builder: Builder
    token: Value
    op: Scan
    operands: tuple[Value, ...]
    received: Mapping[int, Value]
    active: Sequence[str]

    def gradients(self, differentiate: Differentiate) -> dict[str, Value]:
        """The gradients of active arguments, by the name of the body's argument."""
        wanted = self._seeded()
        seeded = tuple(self.op.body.outputs[position] for position in wanted)
        joint = differentiate(replace(self.op.body, outputs=seeded), self.active)
        cut = cut_body(self.op, joint, len(seeded))
        sources = read_by_backward(self.builder, self.token, self.op, self.operands, joint, cut)
        cotangents = [a.value for a in joint.arguments if a.kind == "cotangent"]
        for position, cotangent in zip(wanted, cotangents, strict=True):
            axis = None if position < self.op.carried else self.op.joined[position]
            sources[cotangent.name] = (self._received(position), axis)
        states = self._active_states()
        carried = [cotangent.name for cotangent in cotangents[: len(states)]]
        return self._backward(cut, sources, carried)

    def _active_states(self) -> list[int]:
        names = [a.value.name for a in self.op.body.arguments[: self.op.carried]]
        return [position for position, name in enumerate(names) if name in self.active]

    def _seeded(self) -> list[int]:
        """The results that a cotangent comes to: active states, and what has received one."""
        rest = [k for k in sorted(self.received) if k >= self.op.carried]
        return [*self._active_states(), *rest]

    def _received(self, position: int) -> Value:
        """A result's cotangent; zeros for a last state that nobody reads."""
        found = self.received.get(position)
        return found or self.builder.zeros(self.operands[position])

    def _backward(
        self,
        cut: TrainingPrograms,
        sources: Mapping[str, tuple[Value, int | None]],
        carried: Sequence[str],
    ) -> dict[str, Value]:
        """The backward scan and its results; its states are the cotangents in `carried`."""
        arguments = {a.value.name: a for a in cut.backward.arguments}
        rest = [name for name in arguments if name not in carried]
        order = [*carried, *rest]
        position_of = {a.value.name: k for k, a in enumerate(self.op.body.arguments)}
        places = [position_of[name] for name in self.active]
        joined = [None if k < self.op.carried or self._whole(k) else 0 for k in places]
        op = Scan(
            replace(cut.backward, arguments=tuple(arguments[name] for name in order)),
            self.op.index,
            self.op.size,
            len(carried),
            (*(None,) * len(carried), *(sources[name][1] for name in rest)),
            tuple(joined),
            not self.op.reverse,
            recomputed=cut.recomputed,
        )
        token = emit_scan(self.builder, op, [sources[name][0] for name in order])
        return {
            name: self._as_operand(emit_pick(self.builder, token, op, number), places[number])
            for number, name in enumerate(self.active)
        }

    def _whole(self, position: int) -> bool:
        return self.op.sliced[position] is None

    def _as_operand(self, gradient: Value, position: int) -> Value:
        """A gradient, joined along the first axis, with its axes where the operand has them."""
        axis = self.op.sliced[position]
        if axis is None:
            return gradient
        labels = tuple(range(len(gradient.shape)))
        order = (*labels[1 : axis + 1], 0, *labels[axis + 1 :])
        target = self.operands[position]
        return self.builder.contract([gradient], [labels], order, target.shape, target.axes)


def cut_body(op: Scan, joint: Program, count: int) -> TrainingPrograms:
    """The body's program with derivatives, cut; kept is what depends on states or slices."""
    if op.keeps == "states":
        return partition(joint, count, ())
    body = op.body
    moving = {
        argument.value.name
        for k, argument in enumerate(body.arguments)
        if k < op.carried or op.sliced[k] is not None
    }
    for step in joint.steps:
        if moving.intersection(step.operands):
            moving.add(step.out.name)
    return partition(joint, count, moving)


def read_by_backward(
    builder: Builder,
    token: Value,
    op: Scan,
    operands: Sequence[Value],
    joint: Program,
    cut: TrainingPrograms,
) -> dict[str, tuple[Value, int | None]]:
    """What the backward half of a body reads: where it comes from, and the axis it is sliced along.

    States before each position and saved values are kept by the forward scan from here on.
    """
    read = {a.value.name for a in cut.backward.arguments if a.kind != "cotangent"}
    arguments = {a.value.name: k for k, a in enumerate(op.body.arguments)}
    states = [n for n, k in arguments.items() if n in read and k < op.carried]
    kept = keep_values(builder, token, joint, [*states, *cut.saved])
    sources: dict[str, tuple[Value, int | None]] = {n: (value, 0) for n, value in kept.items()}
    for name, position in arguments.items():
        if name in read and position >= op.carried:
            sources[name] = (operands[position], op.sliced[position])
    return sources


def keep_values(
    builder: Builder, token: Value, joint: Program, names: Sequence[str]
) -> dict[str, Value]:
    """Let a scan that is in the builder also give values of its body at every position.

    ``joint``: the body with derivatives, where scans inside it may give more than before. Returns
    each value with its positions along a new first axis.
    """
    place = next(k for k, step in enumerate(builder.steps) if step.out.name == token.name)
    step = builder.steps[place]
    op: Scan = step.op  # type: ignore[assignment]
    joined = {n: k for k, n in enumerate(op.body.outputs) if op.joined[k] == 0}
    new = [name for name in names if name not in joined]
    outputs = (*op.body.outputs, *new)
    body = drop_dead_steps(replace(op.body, steps=joint.steps, outputs=outputs))
    wider = replace(op, body=body, joined=(*op.joined, *(0 for _ in new)))
    builder.steps[place] = replace(step, op=wider)
    joined.update((name, k) for k, name in enumerate(new, len(op.body.outputs)))
    kept = {}
    for name in names:
        value = result_value(wider, joined[name], fresh_name(f"{name}_all", builder.taken))
        kept[name] = builder.copy(Step(value, Pick(joined[name]), ()), (token,))
    return kept
