"""Orders that take one tensor, the largest of each contraction, through all others one by one.

In: a logical program and sizes. Out: an order for each contraction of more than two operands. Every
intermediate then carries the large tensor's indices, and nothing is made of small ones alone: what
a kernel that streams the large one wants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tncompiler.ir.program import Contract, Labels, Program
from tncompiler.ir.sizes import Binding, Size, evaluate

SsaPath = tuple[tuple[int, int], ...]


def sweep_orders(program: Program, sizes: Binding) -> dict[str, SsaPath]:
    """By contraction, the sweep whose next result is always the smallest."""
    return {
        step.out.name: _sweep(step.op, _extents(program, step.operands, step.op.inputs, sizes))
        for step in program.steps
        if isinstance(step.op, Contract) and sum(map(bool, step.op.inputs)) > 2
    }


def _extents(
    program: Program, operands: tuple[str, ...], inputs: tuple[Labels, ...], sizes: Binding
) -> Mapping[int, int]:
    """The extent of each label."""
    found: dict[int, Size] = {}
    for name, labels in zip(operands, inputs, strict=True):
        found.update(zip(labels, program.values[name].shape, strict=True))
    return {label: evaluate(size, sizes) for label, size in found.items()}


def _sweep(op: Contract, extents: Mapping[int, int]) -> SsaPath:
    def elements(labels: set[int]) -> int:
        return math.prod(extents[label] for label in labels)

    tensors = [labels for labels in op.inputs if labels]  # orders do not count scalars
    waiting = {number: {*labels} for number, labels in enumerate(tensors)}
    held = max(waiting, key=lambda number: elements(waiting[number]))
    labels = waiting.pop(held)
    path = []
    while waiting:
        results = {n: _result(op, labels, waiting, n) for n in waiting}
        near = [n for n in waiting if labels & waiting[n]] or [*waiting]
        number = min(near, key=lambda n: elements(results[n]))
        path.append((held, number))
        labels = results[number]
        del waiting[number]
        held = len(tensors) + len(path) - 1
    return tuple(path)


def _result(
    op: Contract, labels: set[int], waiting: Mapping[int, set[int]], number: int
) -> set[int]:
    """What is left of two operands' labels: what the result or another operand has."""
    needed = {*op.output}.union(*(own for n, own in waiting.items() if n != number))
    return (labels | waiting[number]) & needed
