"""Scans in programs: their results as values, the programs inside them, what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import is_differentiable
from tncompiler.ir.program import Pick, Program, Scan, Step, Value

Body = Callable[[Program], Program]


def programs_within(program: Program) -> Iterator[Program]:
    """The program, and after it those inside its scans, at any depth."""
    yield program
    for step in program.steps:
        if isinstance(step.op, Scan):
            yield from programs_within(step.op.body)


def steps_within(program: Program) -> Iterator[Step]:
    """All steps, those inside scans too."""
    for inner in programs_within(program):
        yield from inner.steps


def has_scans(program: Program) -> bool:
    """Whether the program has scans, without which passes on them have nothing to do."""
    return any(isinstance(step.op, Scan) for step in program.steps)


def change_bodies(program: Program, change: Body) -> Program:
    """The program with the bodies of its scans changed; itself if none changes."""
    if not has_scans(program):
        return program
    steps = []
    for step in program.steps:
        if isinstance(step.op, Scan):
            body = change(step.op.body)
            if body is not step.op.body:
                step = replace(step, op=replace(step.op, body=body))
        steps.append(step)
    return program.with_steps(steps)


def at_all_depths(change: Body) -> Body:
    """The change made to the bodies of a program's scans, the innermost first, and then to it."""

    def deep(program: Program) -> Program:
        return change(change_bodies(program, deep))

    return deep


def result_value(op: Scan, position: int, name: str) -> Value:
    """The value that a Pick takes out of a scan."""
    made = op.body.values[op.body.outputs[position]]
    if op.joined[position] is None:
        return replace(made, name=name)
    return Value(name, (op.size, *made.shape), made.dtype, (op.index, *made.axes))


def emit_scan(builder: Builder, op: Scan, operands: Sequence[Value]) -> Value:
    """Append a scan; what comes back is only for Picks to read."""
    return builder.emit(op, operands, (), "bool", ())


def emit_pick(builder: Builder, token: Value, op: Scan, position: int) -> Value:
    """Append the step that takes a result out of a scan."""
    value = result_value(op, position, "")
    return builder.emit(Pick(position), (token,), value.shape, value.dtype, value.axes)


def picks_of(steps: Sequence[Step], token: str) -> dict[int, Value]:
    """The results of a scan or loop that are taken out, by position."""
    return {
        step.op.position: step.out
        for step in steps
        if isinstance(step.op, Pick) and step.operands == (token,)
    }


# ---------------------------------------------------------------------------- what depends on what


def active_arguments(op: Scan, operands: Sequence[Value], reached: Collection[str]) -> list[str]:
    """The body's differentiable arguments that depend on one of the values `reached`.

    A state does where its first value does, or where some position makes it so.
    """
    pairs = zip(operands, op.body.arguments, strict=True)
    active = {a.value.name for value, a in pairs if value.name in reached}
    states = [a.value.name for a in op.body.arguments[: op.carried]]
    while True:
        found = reached_values(op.body, active)
        new = {
            state
            for state, after in zip(states, op.body.outputs, strict=False)
            if after in found and state not in active
        }
        if not new:
            return [a.value.name for a in op.body.arguments if a.value.name in found]
        active |= new


def reached_values(program: Program, names: Collection[str]) -> set[str]:
    """Every differentiable value that depends on one of the named values.

    The step of a scan has no number, and never does; its results do where they depend on one.
    """
    found = {name for name in names if is_differentiable(program.values[name].dtype)}
    results: dict[str, set[int]] = {}
    for step in program.steps:
        if isinstance(step.op, Scan):
            results[step.out.name] = _reached_results(program, step, step.op, found)
        elif isinstance(step.op, Pick) and step.operands[0] in results:
            if step.op.position in results[step.operands[0]]:
                found.add(step.out.name)
        elif is_differentiable(step.out.dtype) and found.intersection(step.operands):
            found.add(step.out.name)
    return found


def _reached_results(program: Program, step: Step, op: Scan, found: set[str]) -> set[int]:
    if not found.intersection(step.operands):
        return set()
    operands = [program.values[name] for name in step.operands]
    inside = reached_values(op.body, active_arguments(op, operands, found))
    states = {
        k
        for k, argument in enumerate(op.body.arguments[: op.carried])
        if argument.value.name in inside
    }
    return states | {k for k, name in enumerate(op.body.outputs) if name in inside}
