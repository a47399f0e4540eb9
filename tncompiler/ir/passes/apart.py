"""Sum over an index in steps of their own, so that its positions keep exponents of their own.

In: a scheduled program that carries no exponents yet, an axis. Out: the same values; products that
summed over the axis's index keep it, and the step after each sums over it. A sum of one operand
aligns the exponents of what it adds (passes/stabilize.py), so that such a program can be computed
along the index block by block, which no product of values with one exponent for all blocks can.
"""

from __future__ import annotations

from collections.abc import Mapping

from tncompiler.ir.builder import Builder
from tncompiler.ir.passes.slicing import Axis, linked_axes
from tncompiler.ir.program import (
    Contract,
    Labels,
    Program,
    Step,
    canonical,
    label_names,
    label_sizes,
    operand_values,
)


def sum_apart(program: Program, axis: Axis) -> Program:
    """The program with sums over the index of `axis` in steps of their own."""
    links = linked_axes(program)
    builder = Builder(like=program)
    for step in program.steps:
        summed = _summed(step, links, links[axis])
        if isinstance(step.op, Contract) and summed and len(step.operands) > 1:
            _apart(builder, program, step, step.op, summed)
        else:
            builder.copy(step, operand_values(program, step))
    return program.with_steps(builder.steps)


def summed_axes(program: Program) -> list[Axis]:
    """An axis of each index that some product sums over."""
    links = linked_axes(program)
    roots = dict.fromkeys(links.values())
    return [
        root
        for root in roots
        if any(len(s.operands) > 1 and _summed(s, links, root) for s in program.steps)
    ]


def _summed(step: Step, links: Mapping[Axis, Axis], root: Axis) -> Labels:
    """The labels of the index that a contraction sums over."""
    if not isinstance(step.op, Contract):
        return ()
    found = {
        label
        for name, labels in zip(step.operands, step.op.inputs, strict=True)
        for axis, label in enumerate(labels)
        if label not in step.op.output and links[name, axis] == root
    }
    return tuple(sorted(found))


def _apart(builder: Builder, program: Program, step: Step, op: Contract, summed: Labels) -> None:
    operands = operand_values(program, step)
    sizes, names = label_sizes(op, operands, step.out), label_names(op, operands, step.out)
    output = (*summed, *dict.fromkeys(op.output))
    product = builder.contract(
        operands, op.inputs, output, [sizes[k] for k in output], [names[k] for k in output]
    )
    total = canonical(Contract((output,), op.output))
    builder.copy(Step(step.out, total, ()), (product,))
