"""Compute in float32 what is stored in float16 or bfloat16.

In: any program. Out: low-precision arguments are cast up first, every step works in float32 (so
sums accumulate there), outputs are cast back.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import LOW_PRECISION
from tncompiler.ir.program import Program, Value


def widen_low_precision(program: Program) -> Program:
    """Cast low-precision arguments to float32 and outputs back."""
    if not any(value.dtype in LOW_PRECISION for value in program.values.values()):
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
