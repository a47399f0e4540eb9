"""Compute in float32 what is stored in float16 or bfloat16.

In: any program. Out: low-precision arguments are cast up first, every step works in float32 (so
sums accumulate there), outputs are cast back.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import LOW_PRECISION
from tncompiler.ir.program import Cast, Program, Scan, Step, Value, operand_values


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
        if isinstance(step.op, Scan):
            widened = replace(widened, op=replace(step.op, body=_all_wide(step.op.body)))
        wide[step.out.name] = builder.copy(widened, [wide[name] for name in step.operands])
    outputs = [builder.cast(wide[n], program.values[n].dtype) for n in program.outputs]
    return program.with_steps(builder.steps, tuple(value.name for value in outputs))


def _all_wide(body: Program) -> Program:
    """The body of a scan with float32 in place of low precision, states and results included."""
    arguments = tuple(replace(a, value=_wide(a.value)) for a in body.arguments)
    steps = []
    for step in body.steps:
        op = step.op
        if isinstance(op, Scan):
            op = replace(op, body=_all_wide(op.body))
        steps.append(replace(step, out=_wide(step.out), op=op))
    return replace(body, arguments=arguments, steps=tuple(steps))


def _wide(value: Value) -> Value:
    return replace(value, dtype="float32") if value.dtype in LOW_PRECISION else value


def _works_low(step: Step, program: Program) -> bool:
    """Whether a step computes on low-precision numbers, other than to cast them."""
    values = (step.out, *operand_values(program, step))
    return not isinstance(step.op, Cast) and any(v.dtype in LOW_PRECISION for v in values)
