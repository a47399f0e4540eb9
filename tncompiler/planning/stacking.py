"""Carry out many small steps that are the same as one, on stacks of what they read.

In: a scheduled program, integers for its free sizes, rates. Out: the same program, in which equal
contractions of two operands that do not depend on one another are one contraction with a leading
axis more, where that is predicted to take less time; its members are views. A stack whose members
are read in order, or every second of them, is read as it stands; others are stacked first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.matmul import is_matmul, matmul_form
from tncompiler.ir.passes.layout import free_values, reordered, reread
from tncompiler.ir.program import (
    Argument,
    Concat,
    Contract,
    Labels,
    Permute,
    Program,
    Split,
    Step,
    Value,
    canonical,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.ir.stacking import Member
from tncompiler.planning.rates import Rates
from tncompiler.planning.rounds import LEAST
from tncompiler.planning.timing import step_us

STACKED_UP_TO = 8_000  # steps; a longer program is to be looked at rather than run
GAIN = 0.8  # of the predicted time, at most, for which steps are stacked
MEMBER_US = 0.1  # to take one value out of a stack
LEAST_RUN = 3  # members of a stack that are joined as a part of it rather than one by one
AXIS = "alike"  # what the axis of stacks is called

# kinds of arguments → when they are there; all others come with a call
_FROM = {"param": 0, "constant": 0, "cotangent": 2, "tangent": 2}

Group = tuple[Step, ...]
Levels = Mapping[str, int]
Place = tuple[Value, int]  # a stack and a position in it


def stack_alike(program: Program, nominal: Binding, rates: Rates) -> Program:
    """The program with equal steps stacked: those that can run as early, then as late."""
    if not 2 * LEAST <= len(program.steps) <= STACKED_UP_TO:
        return program
    for levels_of in (earliest_levels, latest_levels):
        levels = levels_of(program)
        ordered = _in_natural_order(program, nominal, groups_of(program, levels))
        stacked = _stacked(ordered, nominal, rates, groups_of(ordered, levels))
        program = program if stacked is ordered else stacked
    return program


def earliest_levels(program: Program) -> Levels:
    """How many steps each step has to wait for, one after the other."""
    level: dict[str, int] = {}
    for step in program.steps:
        level[step.out.name] = 1 + max((level.get(name, 0) for name in step.operands), default=0)
    return level


def latest_levels(program: Program) -> Levels:
    """Minus how many steps wait for each step, one after the other."""
    level = {step.out.name: 0 for step in program.steps}
    for step in reversed(program.steps):
        for name in step.operands:
            if name in level:
                level[name] = min(level[name], level[step.out.name] - 1)
    return level


def groups_of(program: Program, levels: Levels) -> list[Group]:
    """The equal contractions of a level, where there are enough; lower levels first.

    Steps of one level do not depend on one another. Those of a group may run at the same time: when
    parameters are set, in the forward or in the backward pass.
    """
    alike: dict[object, list[Step]] = {}
    times = _times(program)
    for step in program.steps:
        operands = operand_values(program, step)
        shaped = all(value.shape for value in (step.out, *operands))
        if isinstance(step.op, Contract) and len(operands) == 2 and shaped:
            shapes = tuple((value.shape, value.dtype) for value in operands)
            name, made = step.out.name, (step.out.shape, step.out.dtype)
            key = (times[name], levels[name], step.op, shapes, made)
            alike.setdefault(key, []).append(step)
    found = [tuple(steps) for steps in alike.values() if len(steps) >= LEAST]
    return sorted(found, key=lambda group: levels[group[0].out.name])


def _times(program: Program) -> Mapping[str, int]:
    """When each value can be made: 0 of parameters alone, 1 of what a call brings, 2 backward."""
    found = {a.value.name: _FROM.get(a.kind, 1) for a in program.arguments}
    for step in program.steps:
        found[step.out.name] = max((found[name] for name in step.operands), default=0)
    return found


def _in_natural_order(program: Program, nominal: Binding, groups: Sequence[Group]) -> Program:
    """The products of groups with their axes in the order in which they come out, if they may."""
    free = free_values(program)
    steps = {step.out.name: step for step in program.steps}
    readers: dict[str, list[str]] = {}
    for step in program.steps:
        for name in dict.fromkeys(step.operands):
            readers.setdefault(name, []).append(step.out.name)
    for group in groups:
        order = _natural(program, group[0], nominal)
        for name in (step.out.name for step in group if step.out.name in free):
            steps[name] = reordered(steps[name], order)
            for reader in readers.get(name, ()):
                steps[reader] = reread(steps[reader], name, order)
    return program.with_steps(steps.values())


def _natural(program: Program, step: Step, nominal: Binding) -> Labels:
    """The axes of a contraction's value in the order in which a matrix product gives them."""
    op: Contract = step.op  # type: ignore[assignment]
    if not is_matmul(op):
        return tuple(range(len(op.output)))
    sizes = label_sizes(op, operand_values(program, step), step.out)
    form = matmul_form(op, {k: evaluate(size, nominal) for k, size in sizes.items()})
    place = {label: axis for axis, label in enumerate(op.output)}
    return tuple(place[label] for label in form.natural()[0])


def _stacked(program: Program, nominal: Binding, rates: Rates, groups: Sequence[Group]) -> Program:
    """The program with those groups stacked for which that pays."""
    trial, paying, values = _Writer(program, nominal), [], dict(program.values)
    for group in groups:
        apart = len(group) * step_us(program, group[0], nominal, rates)
        before, places = len(trial.builder.steps), dict(trial.places)
        trial.write(group)
        made = trial.builder.steps[before:]
        values.update((step.out.name, step.out) for step in made)
        if _alone_us(made, values, nominal, rates) + MEMBER_US * len(group) < GAIN * apart:
            paying.append(group)
        else:
            trial.places = places
    if not paying:
        return program
    writer = _Writer(program, nominal)
    for node in _in_order(program.steps, paying):
        if len(node) > 1:
            writer.write(node)
        else:
            writer.copy(node[0])
    return program.with_steps(writer.builder.steps)


def _alone_us(
    steps: Sequence[Step], values: Mapping[str, Value], nominal: Binding, rates: Rates
) -> float:
    """Predicted microseconds of some steps, which may read any of the values."""
    read = dict.fromkeys(name for step in steps for name in step.operands)
    alone = Program(tuple(Argument(values[name], "input") for name in read), tuple(steps), ())
    return math.fsum(step_us(alone, step, nominal, rates) for step in steps)


def _in_order(steps: Sequence[Step], groups: Sequence[Group]) -> Iterator[Group]:
    """Groups, and all other steps by themselves, each after what it reads; else as they stood."""
    nodes: list[Group] = [*groups]
    of = {step.out.name: number for number, group in enumerate(groups) for step in group}
    for step in steps:
        if step.out.name not in of:
            of[step.out.name] = len(nodes)
            nodes.append((step,))
    places = {step.out.name: place for place, step in enumerate(steps)}
    rank = [max(places[step.out.name] for step in node) for node in nodes]
    waits = [{of[k] for step in node for k in step.operands if k in of} for node in nodes]
    waited: dict[int, list[int]] = {}
    for number, needed in enumerate(waits):
        for other in needed:
            waited.setdefault(other, []).append(number)
    ready = [(rank[number], number) for number, needed in enumerate(waits) if not needed]
    heapq.heapify(ready)
    while ready:
        _, number = heapq.heappop(ready)
        yield nodes[number]
        for other in waited.get(number, ()):
            waits[other].discard(number)
            if not waits[other]:
                heapq.heappush(ready, (rank[other], other))


class _Writer:
    """Writes steps and groups, and knows which values stand in which stack."""

    def __init__(self, program: Program, nominal: Binding) -> None:
        self.program, self.nominal = program, nominal
        self.builder = Builder(like=program)
        self.places: dict[str, Place] = {}

    def copy(self, step: Step) -> None:
        """A step as it is."""
        self.builder.copy(step, operand_values(self.program, step))
        if isinstance(step.op, Member):
            stack = self.program.values[step.operands[0]]
            self.places[step.out.name] = (stack, step.op.position)
        if step.op == Split(0, 2) and step.out.axes[0] == AXIS:
            joined = self.program.producers.get(step.operands[0])
            if joined is not None and joined.op == Concat(0):
                self._note(joined.operands, step.out)

    def _note(self, names: Sequence[str], stack: Value) -> None:
        """Remember where values stand that have been stacked one by one."""
        if len(names) == stack.shape[0]:
            for position, name in enumerate(names):
                self.places.setdefault(name, (stack, position))

    def write(self, group: Group) -> None:
        """The group as one step on stacks, and its members; what all read alike is no stack."""
        group = min(self._arrangements(group), key=self._parts)
        op: Contract = group[0].op  # type: ignore[assignment]
        out, count = group[0].out, len(group)
        alike = 1 + max(label for labels in (*op.inputs, op.output) for label in labels)
        operands, wires = [], []
        for side, labels in enumerate(op.inputs):
            names = [step.operands[side] for step in group]
            shared = len(set(names)) == 1
            operands.append(self.program.values[names[0]] if shared else self._stack(names))
            wires.append(labels if shared else (alike, *labels))
        natural = _natural(self.program, group[0], self.nominal)
        made = self.builder.emit(
            canonical(Contract((wires[0], wires[1]), (alike, *(op.output[k] for k in natural)))),
            operands,
            (count, *(out.shape[k] for k in natural)),
            out.dtype,
            (AXIS, *(out.axes[k] for k in natural)),
        )
        stack = self._as_declared(made, natural)
        for position, step in enumerate(group):
            self.builder.copy(Step(step.out, Member(position), ()), (stack,))
            self.places[step.out.name] = (stack, position)

    def _arrangements(self, group: Group) -> Iterator[Group]:
        """The group as it stands, and in the order in which either operand stands in stacks."""
        yield group
        for side in (0, 1):
            places = [self.places.get(step.operands[side]) for step in group]
            keys = [("", 0) if place is None else (place[0].name, place[1]) for place in places]
            yield tuple(group[at] for at in sorted(range(len(group)), key=keys.__getitem__))

    def _parts(self, group: Group) -> int:
        """How many arrays are joined to stack what a group reads."""
        total = 0
        for side in (0, 1):
            names = [step.operands[side] for step in group]
            if len(set(names)) > 1:
                total += sum(1 for _ in runs_of([self.places.get(name) for name in names]))
        return total

    def _as_declared(self, made: Value, natural: Labels) -> Value:
        """The stack with the axes of its members in the order that is wanted; else a copy."""
        axes = (0, *(1 + natural.index(axis) for axis in range(len(natural))))
        if axes == tuple(range(len(axes))):
            return made
        shape, names = [made.shape[k] for k in axes], [made.axes[k] for k in axes]
        return self.builder.emit(Permute(axes), (made,), shape, made.dtype, names)

    def _stack(self, names: Sequence[str]) -> Value:
        """The values one behind the other along a new first axis."""
        runs = list(runs_of([self.places.get(name) for name in names]))
        if len(runs) == 1 and runs[0] is not None:
            return self._view(runs[0])
        first, values = self.program.values[names[0]], iter(names)
        parts = []
        for run in runs:
            own = [self.program.values[next(values)] for _ in range(run.count if run else 1)]
            parts.append(own[0] if run is None else self._in_one(self._view(run)))
        joined = self.builder.concat(parts, 0)
        stack = self.builder.split(joined, 0, (len(names), first.shape[0]), (AXIS, first.axes[0]))
        self._note([*names], stack)
        return stack

    def _in_one(self, stack: Value) -> Value:
        """The members of a stack one behind the other along their own first axis."""
        size = stack.shape[0] * stack.shape[1]
        return self.builder.merge(stack, 0, 2, size, stack.axes[1])

    def _view(self, run: Run) -> Value:
        """The members of a run, which are every one, every second, … of some in a row."""
        stack, size = run.stack, evaluate(run.stack.shape[0], {})
        first, length = run.first, run.step * run.count
        if (first, length) != (0, size):
            stack = self.builder.slice(stack, 0, first, first + length)
        if run.step == 1:
            return stack
        at = run.start - first
        rows = self.builder.split(stack, 0, (run.count, run.step), (AXIS, f"{AXIS}_2"))
        return self.builder.merge(self.builder.slice(rows, 1, at, at + 1), 0, 2, run.count, AXIS)


@dataclass(frozen=True, slots=True)
class Run:
    """Members of a stack at equal distances: `count` from `start` on."""

    stack: Value
    start: int
    step: int
    count: int

    @property
    def first(self) -> int:
        """Where whole strides begin that hold a member each; the last may have to end with it."""
        return min(self.start, evaluate(self.stack.shape[0], {}) - self.step * self.count)

    @property
    def is_whole(self) -> bool:
        return self.first >= 0 and self.start - self.first < self.step


def runs_of(places: Sequence[Place | None]) -> Iterator[Run | None]:
    """Values as runs that can be read as they stand; None for each that must be copied alone."""
    at = 0
    while at < len(places):
        run = _longest_run(places, at)
        yield run
        at += 1 if run is None else run.count


def _longest_run(places: Sequence[Place | None], at: int) -> Run | None:
    """The run that begins at a value, if it is long enough to be worth it."""
    place = places[at]
    following = places[at + 1] if at + 1 < len(places) else None
    if place is None or following is None or following[0] != place[0]:
        return None
    stack, start = place
    step, count = following[1] - start, 2
    while (
        step > 0
        and at + count < len(places)
        and places[at + count]
        == (
            stack,
            start + step * count,
        )
    ):
        count += 1
    run = Run(stack, start, step, count)
    if step > 0 and not run.is_whole:
        run = replace(run, count=count - 1)
    return run if step > 0 and run.count >= LEAST_RUN and run.is_whole else None
