"""Tell the uses of an argument apart where one of its axes stands for several indices.

In: a scheduled program. Out: the same one with an argument for each use of a core that stands at
several sites of a network, so that one bond can be cut into blocks and the others stay whole; and
which arguments those stand for, to join them again once the loops are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from tncompiler.ir.passes.slicing import linked_axes, names_within
from tncompiler.ir.program import Argument, Contract, Loop, Program, Step, Value, fresh_name


def part_uses(program: Program) -> tuple[Program, dict[str, str]]:
    """The program with arguments of their own for the products that tangled ones enter.

    The first one, and steps that are no products, read what they did.
    """
    tangled = _tangled(program)
    if not tangled:
        return program, {}
    kinds = {argument.value.name: argument.kind for argument in program.arguments}
    taken, seen = names_within(program), set[str]()
    stands_for: dict[str, str] = {}

    def own(name: str) -> str:
        if name not in tangled or name not in seen:
            seen.add(name)
            return name
        alias = fresh_name(f"{name}_use", taken)
        taken.add(alias)
        stands_for[alias] = name
        return alias

    steps = [
        replace(step, operands=tuple(map(own, step.operands)))
        if isinstance(step.op, Contract)
        else step
        for step in program.steps
    ]
    more = [
        Argument(replace(tangled[name], name=alias), kinds[name])
        for alias, name in stands_for.items()
    ]
    arguments = (*program.arguments, *more)
    return replace(program, arguments=arguments, steps=tuple(steps)), stands_for


def join_uses(program: Program, stands_for: Mapping[str, str]) -> Program:
    """The program that reads the arguments themselves again, in its loops too."""
    if not stands_for:
        return program
    arguments = tuple(a for a in program.arguments if a.value.name not in stands_for)
    steps = tuple(_joined(step, stands_for) for step in program.steps)
    return replace(program, arguments=arguments, steps=steps)


def _joined(step: Step, stands_for: Mapping[str, str]) -> Step:
    operands = tuple(stands_for.get(name, name) for name in step.operands)
    op = step.op
    if not isinstance(op, Loop):
        return replace(step, operands=operands)
    # what is read whole has its own name in the body, and is handed over once
    inner = (stands_for.get(a.value.name, a.value.name) for a in op.body.arguments)
    handed = dict(zip(inner, zip(op.body.arguments, operands, op.sliced, strict=True), strict=True))
    arguments = tuple(replace(a, value=replace(a.value, name=n)) for n, (a, *_) in handed.items())
    steps = tuple(_joined(own, stands_for) for own in op.body.steps)
    body = replace(op.body, arguments=arguments, steps=steps)
    sliced = tuple(axis for _, _, axis in handed.values())
    loop = replace(op, body=body, sliced=sliced)
    return Step(step.out, loop, tuple(name for _, name, _ in handed.values()))


def _tangled(program: Program) -> dict[str, Value]:
    """Arguments read more than once, with two axes of one size, that tie axes of some value."""
    uses = program.uses()
    candidates = {
        a.value.name: a.value
        for a in program.arguments
        if uses[a.value.name] > 1 and len(set(a.value.shape)) < len(a.value.shape)
    }
    if not candidates:  # linking the axes of large programs takes seconds
        return {}
    links = linked_axes(program)
    tied = {
        root
        for name, value in program.values.items()
        for root, times in Counter(links[name, k] for k in range(len(value.shape))).items()
        if times > 1
    }
    return {
        name: value
        for name, value in candidates.items()
        if any(links[name, axis] in tied for axis in range(len(value.shape)))
    }
