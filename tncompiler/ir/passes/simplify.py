"""Small local rewrites: relabelings absorbed into their users, conjugations that cancel."""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.program import Cast, Contract, Map, Program, Step


def absorb_relabelings(program: Program) -> Program:
    """Let maps read a transposed or broadcast operand directly; drop what changes nothing."""
    producers = dict(program.producers)
    alias: dict[str, str] = {}
    steps = []
    for step in program.steps:
        operands = tuple(alias.get(name, name) for name in step.operands)
        if operands != step.operands:
            step = replace(step, operands=operands)
        same = _same_as(step, producers, program)
        if same is not None:
            alias[step.out.name] = same
            continue
        if isinstance(step.op, Map):
            step = _rewire(step, producers)
        producers[step.out.name] = step
        steps.append(step)
    return program.with_steps(steps, tuple(alias.get(name, name) for name in program.outputs))


def _same_as(step: Step, producers: dict[str, Step], program: Program) -> str | None:
    """The name of a value that the step merely repeats."""
    op = step.op
    if isinstance(op, Contract) and len(op.inputs) == 1:
        plain = tuple(range(len(op.output)))
        return step.operands[0] if op.inputs[0] == op.output == plain else None
    if isinstance(op, Cast) and program.values[step.operands[0]].dtype == step.out.dtype:
        return step.operands[0]
    if isinstance(op, Map) and op.function in ("conj", "neg"):
        inner = producers.get(step.operands[0])
        straight = (tuple(range(len(step.out.shape))),)
        if inner is not None and inner.op == op and op.inputs == straight:
            return inner.operands[0]
    return None


def _rewire(step: Step, producers: dict[str, Step]) -> Step:
    op: Map = step.op  # type: ignore[assignment]
    operands, inputs = list(step.operands), list(op.inputs)
    for position, name in enumerate(operands):
        inner = producers.get(name)
        if inner is None or not _is_relabeling(inner):
            continue
        wired = dict(zip(inner.op.output, inputs[position], strict=True))  # type: ignore[union-attr]
        labels = tuple(wired[label] for label in inner.op.inputs[0])  # type: ignore[union-attr]
        others = {label for k, wires in enumerate(inputs) if k != position for label in wires}
        if others | set(labels) == set(range(len(step.out.shape))):
            operands[position], inputs[position] = inner.operands[0], labels
    if tuple(operands) == step.operands:
        return step
    return Step(step.out, Map(op.function, tuple(inputs)), tuple(operands))


def _is_relabeling(step: Step) -> bool:
    """One operand, transposed or broadcast: no sum and no diagonal."""
    op = step.op
    return (
        isinstance(op, Contract)
        and len(op.inputs) == 1
        and len(set(op.inputs[0])) == len(op.inputs[0])
        and len(set(op.output)) == len(op.output)
        and set(op.inputs[0]) <= set(op.output)
    )
