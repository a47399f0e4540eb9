"""Cut a joint program (outputs and gradients) into a forward and a backward program.

In: the program that `adjoint` made, scheduled. Out: the forward program, whose outputs are the
primal outputs and then the saved values; and the backward program, whose arguments are the primal
arguments it reads, the saved values and the cotangents. Numbers, and permuted copies of
arguments, are made in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Argument, Literal, Pad, Permute, Program, Slice, Step, Value
from tncompiler.ir.sizes import Size, symbols_of


@dataclass(frozen=True)
class TrainingPrograms:
    """``saved`` names the values that the forward program returns after its outputs."""

    forward: Program
    backward: Program
    saved: tuple[str, ...]


def partition(joint: Program, output_count: int) -> TrainingPrograms:
    """Cut after the steps that the first `output_count` outputs need."""
    primal, gradients = joint.outputs[:output_count], joint.outputs[output_count:]
    forward = drop_dead_steps(replace(joint, outputs=primal))
    done = {step.out.name for step in forward.steps}
    rest = drop_dead_steps(replace(joint, outputs=gradients))
    literals = {s.out.name for s in joint.steps if isinstance(s.op, Literal)}
    given = {argument.value.name for argument in joint.arguments}
    again = literals | {
        s.out.name
        for s in joint.steps
        if isinstance(s.op, Permute) and given.issuperset(s.operands)
    }
    backward_steps = tuple(s for s in rest.steps if s.out.name not in done or s.out.name in again)
    backward_steps = _live(backward_steps, gradients)
    made = {step.out.name for step in backward_steps}
    needed = {name for step in backward_steps for name in step.operands} | set(gradients)
    saved = tuple(
        s.out.name for s in forward.steps if s.out.name in needed and s.out.name not in made
    )
    primals = tuple(a for a in joint.arguments if a.kind != "cotangent")
    needed |= _size_carriers(joint, backward_steps, needed)
    read = tuple(a for a in primals if a.value.name in needed)
    kept = tuple(Argument(joint.values[name], "saved") for name in saved)
    cotangents = tuple(a for a in joint.arguments if a.kind == "cotangent")
    return TrainingPrograms(
        Program(primals, forward.steps, (*primal, *saved), joint.equations),
        Program((*read, *kept, *cotangents), backward_steps, gradients, joint.equations),
        saved,
    )


def _live(steps: tuple[Step, ...], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps that an output depends on."""
    live = set(outputs)
    for step in reversed(steps):
        if step.out.name in live:
            live.update(step.operands)
    return tuple(step for step in steps if step.out.name in live)


def _size_carriers(joint: Program, steps: tuple[Step, ...], read: set[str]) -> set[str]:
    """Primal arguments that the steps need only for the sizes on their axes."""
    wanted = {symbol for step in steps for symbol in _symbols(step)}
    for argument in joint.arguments:
        if argument.value.name in read or argument.kind == "cotangent":
            wanted -= _on_axes(argument.value)
    if any(wanted & symbols_of(s) for e in joint.equations for s in (e.total, *e.parts)):
        wanted |= {k for e in joint.equations for s in (e.total, *e.parts) for k in symbols_of(s)}
    carriers = set()
    for argument in joint.arguments:
        if argument.kind != "cotangent" and wanted & _on_axes(argument.value):
            carriers.add(argument.value.name)
            wanted -= _on_axes(argument.value)
    return carriers


def _on_axes(value: Value) -> set[Size]:
    return {symbol for size in value.shape for symbol in symbols_of(size)}


def _symbols(step: Step) -> set[Size]:
    sizes = [*step.out.shape]
    match step.op:
        case Slice(_, first, second) | Pad(_, first, second):
            sizes += [first, second]
        case Literal(value) if not isinstance(value, int | float | complex):
            sizes.append(value)
    return {symbol for size in sizes for symbol in symbols_of(size)}
