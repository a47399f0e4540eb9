"""Sum booleans as float32: a matrix product of booleans that every BLAS can do.

In: any program. Out: a contraction of booleans that sums becomes one of zeros and ones, compared
with 0. Sums of ones never round to 0, so the result is exact; NumPy and torch have no fast product
of booleans, and torch none at all.
"""

from __future__ import annotations

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import Contract, Convolve, Map, Program, Step, operand_values


def sum_booleans(program: Program) -> Program:
    """Contractions of booleans in float32, then `> 0`."""
    if not any(_sums_booleans(step) for step in program.steps):
        return program
    builder = Builder(like=program)
    for step in program.steps:
        operands = operand_values(program, step)
        if not _sums_booleans(step):
            builder.copy(step, operands)
            continue
        wide = [builder.cast(value, "float32") for value in operands]
        counts = builder.emit(step.op, wide, step.out.shape, "float32", step.out.axes)
        zero = builder.literal(0.0, "float32")
        axes = tuple(range(len(step.out.shape)))
        builder.copy(Step(step.out, Map("greater", (axes, ())), ()), (counts, zero))
    return program.with_steps(builder.steps)


def _sums_booleans(step: Step) -> bool:
    op = step.op
    if isinstance(op, Convolve) and step.out.dtype == "bool":
        return True
    if not isinstance(op, Contract) or step.out.dtype != "bool" or len(op.inputs) < 2:
        return False
    return {label for labels in op.inputs for label in labels} > set(op.output)
