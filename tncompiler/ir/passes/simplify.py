"""Small local rewrites: relabelings absorbed into their users, conjugations that cancel."""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.program import Cast, Contract, Map, Op, Permute, Program, Step, canonical


def absorb_relabelings(program: Program) -> Program:
    """Read transposed (and, in maps, broadcast) operands directly; drop what changes nothing."""
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
        elif isinstance(step.op, Contract):
            step = _read_through(step, step.op, producers)
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
        source: Contract = _as_contract(inner)  # type: ignore[assignment]
        wired = dict(zip(source.output, inputs[position], strict=True))
        labels = tuple(wired[label] for label in source.inputs[0])
        others = {label for k, wires in enumerate(inputs) if k != position for label in wires}
        if others | set(labels) == set(range(len(step.out.shape))):
            operands[position], inputs[position] = inner.operands[0], labels
    if tuple(operands) == step.operands:
        return step
    return Step(step.out, Map(op.function, tuple(inputs)), tuple(operands))


def _read_through(step: Step, op: Contract, producers: dict[str, Step]) -> Step:
    """A contraction reads a merely permuted operand as it was before."""
    operands, inputs = list(step.operands), list(op.inputs)
    for position, name in enumerate(operands):
        inner = producers.get(name)
        if inner is None or not _is_permutation(inner):
            continue
        source: Contract = _as_contract(inner)  # type: ignore[assignment]
        wired = dict(zip(source.output, inputs[position], strict=True))
        operands[position] = inner.operands[0]
        inputs[position] = tuple(wired[label] for label in source.inputs[0])
    if tuple(operands) == step.operands:
        return step
    read = canonical(Contract(tuple(inputs), op.output))
    return Step(step.out, read, tuple(operands))


def _is_permutation(step: Step) -> bool:
    """One operand, its axes only transposed."""
    op = _as_contract(step)
    return _is_relabeling(step) and isinstance(op, Contract) and len(op.inputs[0]) == len(op.output)


def _as_contract(step: Step) -> Op:
    """A copying permute as the contraction that means the same."""
    if isinstance(step.op, Permute):
        return Contract((tuple(range(len(step.op.axes))),), step.op.axes)
    return step.op


def _is_relabeling(step: Step) -> bool:
    """One operand, transposed or broadcast: no sum and no diagonal."""
    op = _as_contract(step)
    return (
        isinstance(op, Contract)
        and len(op.inputs) == 1
        and len(set(op.inputs[0])) == len(op.inputs[0])
        and len(set(op.output)) == len(op.output)
        and set(op.inputs[0]) <= set(op.output)
    )
