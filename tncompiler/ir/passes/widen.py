"""Compute in float32 what is stored in float16 or bfloat16.

In: any program. Out: low-precision arguments are cast up first, every step works in float32 (so
sums accumulate there), outputs are cast back.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import LOW_PRECISION
from tncompiler.ir.program import Cast, Program, Step, Value, operand_values


def widen_low_precision(program: Program) -> Program:
    """Cast low-precision arguments to float32 and outputs back."""
    if not any(_works_low(step, program) for step in program.steps):
        return program
    builder = Builder(like=program)
    wide: dict[str, Value] = {}
    for argument in program.arguments:
        value = argument.value
        low = value.dtype in LOW_PRECISION
        wide[value.name] = builder.cast(value, "float32") if low else value
    for step in program.steps:
        dtype = "float32" if step.out.dtype in LOW_PRECISION else step.out.dtype
        widened = replace(step, out=replace(step.out, dtype=dtype))
        wide[step.out.name] = builder.copy(widened, [wide[name] for name in step.operands])
    outputs = [builder.cast(wide[n], program.values[n].dtype) for n in program.outputs]
    return program.with_steps(builder.steps, tuple(value.name for value in outputs))


def _works_low(step: Step, program: Program) -> bool:
    """Whether a step computes on low-precision numbers, other than to cast them."""
    values = (step.out, *operand_values(program, step))
    return not isinstance(step.op, Cast) and any(v.dtype in LOW_PRECISION for v in values)
