"""Merge steps that compute the same value; blind to index names, bound ones included."""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.program import Contract, Literal, Map, Program, Step, canonical

_COMMUTATIVE = ("add", "maximum", "minimum", "equal", "not_equal")


def merge_common_steps(program: Program) -> Program:
    """Replace a step that repeats an earlier one by the earlier one's value."""
    first: dict[object, str] = {}
    alias: dict[str, str] = {}
    kept = []
    for step in program.steps:
        operands = tuple(alias.get(name, name) for name in step.operands)
        if operands != step.operands:
            step = replace(step, operands=operands)
        known = first.setdefault(step_key(step), step.out.name)
        if known == step.out.name:
            kept.append(step)
        else:
            alias[step.out.name] = known
    if not alias:
        return program
    return program.with_steps(kept, tuple(alias.get(name, name) for name in program.outputs))


def step_key(step: Step) -> object:
    """What a step computes: equal keys, equal values."""
    op, operands = step.op, step.operands
    if isinstance(op, Contract):
        order = sorted(range(len(operands)), key=operands.__getitem__)
        if order != [*range(len(operands))]:
            op = canonical(Contract(tuple(op.inputs[k] for k in order), op.output))
            operands = tuple(operands[k] for k in order)
    elif isinstance(op, Map) and op.function in _COMMUTATIVE:
        order = sorted(range(len(operands)), key=operands.__getitem__)
        op = Map(op.function, tuple(op.inputs[k] for k in order))
        operands = tuple(operands[k] for k in order)
    elif isinstance(op, Literal):
        return (type(op.value).__name__, repr(op.value), step.out.dtype)
    return (op, operands, step.out.shape, step.out.dtype)
