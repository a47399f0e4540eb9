"""Choose the axis order of intermediates so that matrix products run on views.

A value that only contractions and maps read may have its axes in any order; outputs and
what views read keep theirs. Greedy, one value at a time, in the order of the program: of the orders
in which its own product comes out without a permute, take the one whose readers copy least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tncompiler.ir.convolution import form_of, natural_axes
from tncompiler.ir.matmul import copied_elements, is_matmul, matmul_form
from tncompiler.ir.program import (
    Contract,
    Convolve,
    Labels,
    Map,
    Networks,
    Op,
    Program,
    Step,
    Value,
    canonical,
    canonical_convolve,
    label_sizes,
    with_output,
)
from tncompiler.ir.sizes import Size

_NOMINAL = 128  # stands for a symbolic size when copies are weighed


def order_axes(program: Program) -> Program:
    """Reorder the axes of free intermediates."""
    free = free_values(program)
    readers: dict[str, list[str]] = {}
    for step in program.steps:
        for name in step.operands:
            readers.setdefault(name, []).append(step.out.name)
    steps = {step.out.name: step for step in program.steps}
    values = dict(program.values)
    for name in [step.out.name for step in program.steps]:
        if name in free:
            _place(name, steps, values, readers.get(name, []))
    return program.with_steps(steps.values())


def free_values(program: Program) -> set[str]:
    """Values whose axis order only contractions and maps see."""
    free = {s.out.name for s in program.steps if isinstance(s.op, Networks | Map)}
    for step in program.steps:
        if not isinstance(step.op, Networks | Map):
            free.difference_update(step.operands)
    return free.difference(program.outputs)


def _place(
    name: str, steps: dict[str, Step], values: dict[str, Value], readers: Iterable[str]
) -> None:
    step = steps[name]
    best, *others = _candidates(step, values)
    identity = tuple(range(len(step.out.shape)))
    if others:
        reading = [_Reading.of(steps[reader], name, values) for reader in readers]
        orders = (best, *others)
        best = min(orders, key=lambda order: sum(one.copies(order) for one in reading))
    if best != identity:
        steps[name] = reordered(step, best)
        values[name] = steps[name].out
        for reader in set(readers):
            steps[reader] = reread(steps[reader], name, best)


def _candidates(step: Step, values: Mapping[str, Value]) -> list[Labels]:
    """Orders (by axis) in which the step's value comes out of its computation as it is."""
    identity = tuple(range(len(step.out.shape)))
    op = step.op
    if isinstance(op, Map):
        full = [wires for wires in op.inputs if len(wires) == len(identity)]
        return [*dict.fromkeys([*full[:1], identity])]
    if isinstance(op, Convolve):
        return [*dict.fromkeys([*natural_axes(op)[:1], identity])]
    if not isinstance(op, Contract) or not is_matmul(op):
        return [identity]
    form = matmul_form(op, _numbers(op, step, values))
    m = wanted_order(form.m, op) if form.a_copied else form.m
    n = wanted_order(form.n, op) if form.b_copied else form.n
    orders = replace(form, m=m, n=n).natural()
    place = places(op.output)
    return [tuple(place[label] for label in order) for order in dict.fromkeys(orders)]


def wanted_order(labels: Labels, op: Contract) -> Labels:
    """The free labels of an operand that is copied anyway, in the order of the result."""
    return tuple(sorted(labels, key=places(op.output).__getitem__))


def places(labels: Labels) -> dict[int, int]:
    """The axis of each label; looking it up label by label would be quadratic in the axes."""
    return {label: axis for axis, label in enumerate(labels)}


def _numbers(op: Networks, step: Step, values: Mapping[str, Value]) -> dict[int, int]:
    sizes = label_sizes(op, [values[name] for name in step.operands], step.out)
    return {label: _number(size) for label, size in sizes.items()}


def _number(size: Size) -> int:
    return size if isinstance(size, int) else _NOMINAL


@dataclass(frozen=True, slots=True)
class _Reading:
    """A step that reads a value: ``at`` says as which operands; ``sizes`` are those of labels."""

    op: Op
    at: tuple[int, ...]
    sizes: Mapping[int, int]

    @staticmethod
    def of(step: Step, name: str, values: Mapping[str, Value]) -> _Reading:
        op = step.op
        at = tuple([k for k, operand in enumerate(step.operands) if operand == name])
        if isinstance(op, Convolve) or (isinstance(op, Contract) and is_matmul(op)):
            return _Reading(op, at, _numbers(op, step, values))
        return _Reading(op, at, {})

    def copies(self, order: Labels) -> int:
        """How many elements the step copies if the value comes with its axes in this order."""
        op = self.op
        if not self.sizes or not isinstance(op, Networks):
            return 0
        inputs = list(op.inputs)
        for k in self.at:
            labels = inputs[k]
            inputs[k] = tuple([labels[axis] for axis in order])
        if isinstance(op, Convolve):
            read = replace(op, inputs=tuple(inputs))
            return min(_askew(read, self.sizes, last) for last in (False, True))
        read_op = Contract(tuple(inputs), op.output)
        return copied_elements(matmul_form(read_op, self.sizes), read_op, self.sizes)


def _count(labels: Labels, sizes: Mapping[int, int]) -> int:
    return math.prod([sizes[label] for label in labels])


def _askew(op: Convolve, sizes: Mapping[int, int], last: bool) -> int:
    """How many elements a convolution copies to read its operands in one of its two orders."""
    pairs = zip(op.inputs, form_of(op).read_orders(last=last), strict=True)
    return sum(_count(own, sizes) for own, wanted in pairs if own != wanted)


def permuted(value: Value, order: Labels) -> Value:
    shape = tuple([value.shape[axis] for axis in order])
    return Value(value.name, shape, value.dtype, tuple([value.axes[axis] for axis in order]))


def reordered(step: Step, order: Labels) -> Step:
    """The step with the axes of its value in another order."""
    out = permuted(step.out, order)
    op = step.op
    if isinstance(op, Networks):
        return with_output(step, out, tuple(op.output[axis] for axis in order))
    if isinstance(op, Map):
        place = {axis: position for position, axis in enumerate(order)}
        wires = tuple(tuple(place[label] for label in labels) for labels in op.inputs)
        return Step(out, Map(op.function, wires), step.operands)
    return step


def reread(step: Step, name: str, order: Labels) -> Step:
    """The step reading `name` with its axes in another order."""
    op = step.op
    if not isinstance(op, Networks | Map):
        return step
    inputs = tuple(
        tuple(labels[axis] for axis in order) if operand == name else labels
        for operand, labels in zip(step.operands, op.inputs, strict=True)
    )
    if isinstance(op, Contract):
        return Step(step.out, canonical(Contract(inputs, op.output)), step.operands)
    if isinstance(op, Map):
        return Step(step.out, Map(op.function, inputs), step.operands)
    return Step(step.out, canonical_convolve(replace(op, inputs=inputs)), step.operands)
