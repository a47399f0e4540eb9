"""Cut a program with loops into stages: steps that every rank carries out, and slices to deal out.

In: a scheduled program whose sizes are numbers. Out: stages in order. A nest of loops that add
up is one stage; its slices, the blocks of the innermost loop, are numbered in the order in which
the loops would run them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import sympy

from tncompiler.distributed.linear import adds_up
from tncompiler.ir.program import Argument, Literal, Loop, Op, Pick, Program, Step, Value
from tncompiler.ir.sizes import evaluate, substitute


@dataclass(frozen=True, slots=True)
class Common:
    """Steps that every rank carries out: a program from what is known to what is read later."""

    program: Program


@dataclass(frozen=True, slots=True)
class Result:
    """What the blocks of a loop make together: along an axis they are joined, or (None) added.

    ``output``: which result of the body it is made of.
    """

    value: Value
    output: int
    joined: int | None


@dataclass(frozen=True, slots=True)
class Level:
    """One loop of a nest, over blocks of an index.

    ``operands``: what the loop reads, by the names that are known around it. ``before``: what a
    block makes for the next loop; ``after``: what it makes of what the next loop made.
    """

    loop: Loop
    operands: tuple[str, ...]
    results: tuple[Result, ...]
    before: Program | None = None
    after: Program | None = None

    @property
    def size(self) -> int:
        return evaluate(self.loop.size, {})

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return evaluate(self.loop.count, {})

    def bounds(self, block: int) -> tuple[int, int]:
        """The first position of a block, and the one after its last."""
        start = block * self.loop.width
        return start, min(start + self.loop.width, self.size)


@dataclass(frozen=True, slots=True)
class Slices:
    """A nest of loops: the body of the innermost once for every slice.

    A loop is followed by steps only if these may be done with a part of what it adds up.
    """

    levels: tuple[Level, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        return self.levels[0].results

    @property
    def count(self) -> int:
        return prod(level.count for level in self.levels)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the slices read of the program, by name."""
        return tuple(dict.fromkeys(self.levels[0].operands))

    def name(self, number: int) -> str:
        """The slice for people: "slice 5 (k 2:4, l 0:1)"."""
        found, left = [], number
        for level in reversed(self.levels):
            left, block = divmod(left, level.count)
            start, stop = level.bounds(block)
            found.append(f"{level.loop.index} {start}:{stop}")
        return f"slice {number} ({', '.join(reversed(found))})"


Stage = Common | Slices


def stages_of(program: Program) -> tuple[Stage, ...]:
    """The stages of a program; without loops it is one that all ranks carry out."""
    literals = {s.out.name: s for s in program.steps if isinstance(s.op, Literal)}
    groups = list(_groups(program))
    reads = [_reads(group) for group in groups]
    stages: list[Stage] = []
    for number, group in enumerate(groups):
        later = {name for read in reads[number + 1 :] for name in read} | set(program.outputs)
        if isinstance(group, Step):
            stages.append(_slices(program, group, later))
            continue
        made = [step.out.name for step in group]
        wanted = later - (literals.keys() - set(program.outputs))
        outputs = tuple(name for name in made if name in wanted)
        if outputs:
            stages.append(Common(_part(program, group, outputs, literals)))
    return tuple(stages)


def _groups(program: Program) -> Iterator[list[Step] | Step]:
    """The loops, and the steps between two of them."""
    tokens = {step.out.name for step in program.steps if isinstance(step.op, Loop)}
    group: list[Step] = []
    for step in program.steps:
        if step.out.name in tokens:
            if group:
                yield group
            group = []
            yield step
        elif not (isinstance(step.op, Pick) and step.operands[0] in tokens):
            group.append(step)
    if group:
        yield group


def _reads(group: list[Step] | Step) -> set[str]:
    steps = [group] if isinstance(group, Step) else group
    return {name for step in steps for name in step.operands}


def _part(
    program: Program,
    steps: Sequence[Step],
    outputs: tuple[str, ...],
    literals: Mapping[str, Step],
) -> Program:
    """Some steps as a program of their own; numbers that they read are made in it again."""
    made = {step.out.name for step in steps}
    read = dict.fromkeys(name for step in steps for name in step.operands if name not in made)
    again = [literals[name] for name in read if name in literals]
    kinds = {argument.value.name: argument.kind for argument in program.arguments}
    arguments = tuple(
        Argument(program.values[name], kinds.get(name, "saved"))
        for name in read
        if name not in literals
    )
    return Program(arguments, (*again, *steps), outputs)


def _slices(program: Program, step: Step, wanted: Collection[str]) -> Slices:
    """The nest that begins with a loop; only results that something reads."""
    levels: list[Level] = []
    around: Program | None = program
    while around is not None:
        loop: Loop = step.op  # type: ignore[assignment]
        results = tuple(
            Result(pick.out, _position(pick), loop.joined[_position(pick)])
            for pick in _picks(around, step)
            if pick.out.name in wanted
        )
        level, around = Level(loop, step.operands, results), None
        inner = _inner_loop(loop.body)
        if inner is not None:
            before, after, wanted = _sides(loop.body, inner)
            level = replace(level, before=before, after=after)
            step, around = inner, loop.body
        levels.append(level)
    return Slices(tuple(levels))


def _picks(program: Program, loop: Step) -> list[Step]:
    """The steps that take out what a loop makes."""
    token = (loop.out.name,)
    return [step for step in program.steps if isinstance(step.op, Pick) and step.operands == token]


def _position(step: Step) -> int:
    """Which result a Pick takes out."""
    op: Pick = step.op  # type: ignore[assignment]
    return op.position


def _inner_loop(body: Program) -> Step | None:
    """The loop of a body whose blocks may be shared out, the one with most if there are several."""
    loops = [step for step in body.steps if isinstance(step.op, Loop)]
    fit = [loop for loop in loops if adds_up(body, {s.out.name for s in _picks(body, loop)})]
    return max(fit, key=_count, default=None)


def _count(loop: Step) -> int:
    op: Loop = loop.op  # type: ignore[assignment]
    return evaluate(op.count, {})


def _sides(body: Program, loop: Step) -> tuple[Program | None, Program | None, set[str]]:
    """What a block makes for the loop, what it makes of its results, and which results it wants."""
    picked = {step.out.name for step in _picks(body, loop)}
    late = {loop.out.name, *picked}
    later: list[Step] = []
    for step in body.steps:
        if step.out.name not in late and late.intersection(step.operands):
            late.add(step.out.name)
            later.append(step)
    first = [step for step in body.steps if step.out.name not in late]
    read = {name for step in later for name in step.operands}
    needed = read.union(loop.operands, body.outputs)
    outputs = tuple(step.out.name for step in first if step.out.name in needed)
    before = Program(body.arguments, tuple(first), outputs) if outputs else None
    if not later:
        return before, None, picked.intersection(body.outputs)
    literals = {s.out.name: s for s in first if isinstance(s.op, Literal)}
    made = tuple(step.out.name for step in later if step.out.name in body.outputs)
    return before, _part(body, later, made, literals), picked & (read | set(body.outputs))


# ---------------------------------------------------------------------------- sizes of blocks


def resolve(program: Program, binding: Mapping[sympy.Symbol, int]) -> Program:
    """The program with numbers for the sizes of blocks."""
    if not binding:
        return program

    def at(value: Value) -> Value:
        return replace(value, shape=tuple(substitute(size, binding) for size in value.shape))

    arguments = tuple(replace(a, value=at(a.value)) for a in program.arguments)
    steps = tuple(
        replace(step, out=at(step.out), op=_resolved(step.op, binding)) for step in program.steps
    )
    return replace(program, arguments=arguments, steps=steps)


def _resolved(op: Op, binding: Mapping[sympy.Symbol, int]) -> Op:
    if isinstance(op, Loop):
        return replace(op, body=resolve(op.body, binding))
    return op
