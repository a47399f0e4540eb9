"""A function that a user defined, as the steps that it stands for."""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.functions import function
from tncompiler.ir.program import Contract, Map, Program, Step, canonical, operand_values
from tncompiler.ir.trace import Traced, Tracer


def expand_functions(program: Program) -> Program:
    """The program with functions that users defined written out in those that backends know."""
    if not any(_is_defined(step) for step in program.steps):
        return program
    steps: list[Step] = []
    for step in program.steps:
        steps += _written_out(program, step) if _is_defined(step) else [step]
    return program.with_steps(steps)


def _is_defined(step: Step) -> bool:
    return isinstance(step.op, Map) and function(step.op.function).recipe is not None


def _written_out(program: Program, step: Step) -> list[Step]:
    """Steps called after the value, so that their names are new in the bodies of loops too."""
    builder = Builder()
    for value in dict.fromkeys(operand_values(program, step)):
        builder.argument(value, "saved")  # its name is taken
    _append(builder, program, step)
    names = {inner.out.name: f"{step.out.name}_{inner.out.name}" for inner in builder.steps}
    names[builder.steps[-1].out.name] = step.out.name
    return [
        Step(
            replace(inner.out, name=names[inner.out.name]),
            inner.op,
            tuple(names.get(name, name) for name in inner.operands),
        )
        for inner in builder.steps
    ]


def _append(builder: Builder, program: Program, step: Step) -> None:
    """What the function computes; the last step makes it in the shape and dtype of the value."""
    op: Map = step.op  # type: ignore[assignment]
    recipe, out = function(op.function).recipe, step.out
    assert recipe is not None
    tracer = Tracer(builder, out, out.dtype)
    pairs = zip(operand_values(program, step), op.inputs, strict=True)
    made = recipe(tracer.call, *(tracer.wrap(value, labels) for value, labels in pairs))
    if not isinstance(made, Traced):
        made = tracer.wrap(builder.literal(made, out.dtype), ())
    value = builder.cast(made.value, out.dtype)
    every = tuple(range(len(out.shape)))
    if made.labels != every or not builder.steps or builder.steps[-1].out != value:
        spread = canonical(Contract((made.labels,), every))
        builder.emit(spread, (value,), out.shape, out.dtype, out.axes)
