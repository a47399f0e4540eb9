"""Compute along one index block by block: the steps that carry it go into loops.

In: a scheduled program, an axis of one of its values, a width. Out: the same values, with every
step that works position by position along the axis's index inside a Loop; what is summed over the
index is added up block by block. Steps that need all positions at once stay outside, between loops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.attention import Attention
from tncompiler.ir.attention import places as attention_places
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_rules import places as gather_places
from tncompiler.ir.program import (
    Argument,
    Cast,
    Concat,
    Contract,
    Fold,
    Literal,
    Loop,
    Map,
    Merge,
    Networks,
    Pad,
    Permute,
    Pick,
    Program,
    Reduce,
    Slice,
    Split,
    Step,
    Unfold,
    Value,
    fresh_name,
    moving_labels,
    operand_values,
)
from tncompiler.ir.sizes import Size, plain, resized, size_symbol, symbols_of
from tncompiler.ir.stacking import Member

Axis = tuple[str, int]  # a value and one of its axes


# ---------------------------------------------------------------------------- axes that go together


def linked_axes(program: Program) -> dict[Axis, Axis]:
    """Each axis of each value, with the first axis (in order of the program) that it goes with.

    Axes go together where a step works along them position by position, or sums over them. But not
    at a map that would so tie two axes of one value, along which nothing could be sliced then: the
    sum of the gradients of a core at two sites of a chain reads the bond between them as rows and
    as columns. It is made of whole gradients instead.
    """
    links = _Links(program)
    maps: list[list[Axis]] = []
    for step in program.steps:
        groups = _wirings(step, operand_values(program, step))
        if isinstance(step.op, Map):
            maps += groups
        else:
            for axes in groups:
                links.join(axes)
    links.join_apart(maps)
    return {axis: links.root(axis) for axis in links.parent}


class _Links:
    """Sets of axes, joined; the root of a set is its first member."""

    def __init__(self, program: Program) -> None:
        everything = [(v.name, k) for v in program.values.values() for k in range(len(v.shape))]
        self.order = {axis: number for number, axis in enumerate(everything)}
        self.parent = {axis: axis for axis in everything}

    def root(self, axis: Axis) -> Axis:
        path = []
        while self.parent[axis] != axis:
            path.append(axis)
            axis = self.parent[axis]
        for passed in path:
            self.parent[passed] = axis
        return axis

    def join(self, axes: Sequence[Axis]) -> None:
        roots = sorted({self.root(axis) for axis in axes}, key=self.order.__getitem__)
        for other in roots[1:]:
            self.parent[other] = roots[0]

    def join_apart(self, groups: Iterable[Sequence[Axis]]) -> None:
        """Join each group, unless that would join two axes of one value."""
        values: dict[Axis, set[str]] = {}
        for axis in self.parent:
            values.setdefault(self.root(axis), set()).add(axis[0])
        for axes in groups:
            roots = {self.root(axis) for axis in axes}
            together = set[str]().union(*(values[root] for root in roots))
            if len(together) == sum(len(values[root]) for root in roots):
                self.join(axes)
                values[self.root(axes[0])] = together


def _wirings(step: Step, operands: tuple[Value, ...]) -> Iterator[list[Axis]]:
    """The groups of axes that the step works along together."""
    op, out = step.op, step.out
    if isinstance(op, Networks):
        by_label: dict[int, list[Axis]] = {}
        for labels, value in zip((*op.inputs, op.output), (*operands, out), strict=True):
            for axis, label in enumerate(labels):
                by_label.setdefault(label, []).append((value.name, axis))
        moving = moving_labels(op)
        yield from (axes for label, axes in by_label.items() if label not in moving)
        return
    for value, places in zip(operands, _places(op, operands), strict=True):
        for axis, place in enumerate(places):
            if place is not None:
                yield [(value.name, axis), (out.name, place)]
    if isinstance(op, Split | Merge):
        yield from _alone_among_units(op, operands[0], out)


def _alone_among_units(op: Split | Merge, operand: Value, out: Value) -> Iterator[list[Axis]]:
    """The axis that is split or merged, where all beside it are of size 1."""
    whole, parts = (operand, out) if isinstance(op, Split) else (out, operand)
    among = range(op.axis, op.axis + op.count)
    others = [axis for axis in among if parts.shape[axis] != 1]
    if len(others) == 1:
        yield [(whole.name, op.axis), (parts.name, others[0])]


def _places(op: object, operands: tuple[Value, ...]) -> list[tuple[int | None, ...]]:
    """For each operand of a step that is no contraction, the output axis of each of its axes."""
    ranks = [len(value.shape) for value in operands]
    match op:
        case Map(_, inputs):
            return list(inputs)
        case Permute(axes):
            return [tuple(axes.index(axis) for axis in range(ranks[0]))]
        case Cast():
            return [tuple(range(ranks[0]))]
        case Reduce(_, axes):
            kept = [axis for axis in range(ranks[0]) if axis not in axes]
            return [tuple(kept.index(k) if k in kept else None for k in range(ranks[0]))]
        case Split(axis, count):
            return [_shifted(ranks[0], axis, 1, count)]
        case Unfold(axis):
            return [_shifted(ranks[0], axis, 1, 2)]
        case Fold(axis):
            return [_shifted(ranks[0], axis, 2, 1)]
        case Merge(axis, count):
            return [_shifted(ranks[0], axis, count, 1)]
        case Member():
            return [_shifted(ranks[0], 0, 1, 0)]
        case Slice(axis) | Pad(axis) | Concat(axis):
            return [_shifted(rank, axis, 1, 1) for rank in ranks]
        case Attention():
            return attention_places(op)
        case Gather() | Scatter():
            return gather_places(op, ranks)
    return [(None,) * rank for rank in ranks]


def _shifted(rank: int, axis: int, before: int, after: int) -> tuple[int | None, ...]:
    """Axes beside `before` axes from `axis` on, which become `after` others."""
    moved = after - before
    return tuple(k if k < axis else None if k < axis + before else k + moved for k in range(rank))


# ---------------------------------------------------------------------------- the transformation


def slice_index(
    program: Program,
    axis: Axis,
    width: int,
    *,
    sink: bool = False,
    avoid: Collection[str] = (),
    links: Mapping[Axis, Axis] | None = None,
    whole_views: bool = False,
) -> Program:
    """The program with loops over the index of `axis`; itself where nothing can go into one.

    ``width``: positions of a block. ``sink``: whether what a loop alone reads is made in it, again
    for every block, rather than once before it, where it takes memory. ``avoid``: names, of values
    and sizes, that are in use around the program. ``links``: the program's `linked_axes`, if they
    are known already. ``whole_views``: permuted views that no step of a loop reads are made after
    it, of the whole; inside, every block would be copied to its place in another order.
    """
    slicing = _Slicing(program, axis, width, avoid, links or linked_axes(program))
    if whole_views:
        slicing.leave_views_out()
    if sink:
        slicing.sink()
    return slicing.program()


def _is_permuted_view(step: Step) -> bool:
    op = step.op
    if not isinstance(op, Contract) or len(op.inputs) != 1:
        return False
    (labels,) = op.inputs
    return len(set(labels)) == len(labels) and sorted(labels) == sorted(op.output)


def names_within(program: Program) -> set[str]:
    """The names of all values and block sizes, those in the bodies of loops too."""
    names, pending = set[str](), [program]
    while pending:
        current = pending.pop()
        names.update(current.values)
        for step in current.steps:
            if isinstance(step.op, Loop):
                names.update(symbol.name for symbol in symbols_of(step.op.block))
                pending.append(step.op.body)
    return names


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a step goes: into the loop of a phase, or before that loop."""

    phase: int
    inside: bool


class _Slicing:
    def __init__(
        self,
        program: Program,
        axis: Axis,
        width: int,
        avoid: Collection[str],
        links: Mapping[Axis, Axis],
    ) -> None:
        self.source, self.width = program, width
        self.taken = {*avoid, *program.values}
        root = links[axis]
        self.carried: dict[str, list[int]] = {}
        for (name, number), other in links.items():
            if other == root:
                self.carried.setdefault(name, []).append(number)
        value = program.values[axis[0]]
        self.index, self.size = value.axes[axis[1]], value.shape[axis[1]]
        self.block = self._block()
        self.places = self._phases()

    def _block(self) -> Size:
        """The body's size of the index."""
        if isinstance(self.size, int) and self.size % self.width == 0:
            return self.width
        sizes = [s for value in self.source.values.values() for s in value.shape]
        self.taken.update(symbol.name for size in sizes for symbol in symbols_of(size))
        return size_symbol(self._fresh(f"{self.index}_block"))

    def axis_of(self, name: str) -> int | None:
        axes = self.carried.get(name)
        return axes[0] if axes else None

    # ---------------------------------------------------------------- where each step goes

    def _phases(self) -> dict[str, _Place]:
        """A loop's sums are ready after it, so steps that need them go into the next loop."""
        places: dict[str, _Place] = {}
        for step in self.source.steps:
            inside = self._fits(step)
            phase = 0
            for name in step.operands:
                place = places.get(name)
                if place is not None:
                    together = inside and self.axis_of(name) is not None
                    phase = max(phase, place.phase + (place.inside and not together))
            places[step.out.name] = _Place(phase, inside)
        return places

    def leave_views_out(self) -> None:
        """Move permuted views that no step of their loop reads behind it."""
        places = self.places
        read = set[str]()  # by a step in the loop of the value's own phase
        for step in reversed(self.source.steps):
            place = places[step.out.name]
            if place.inside and step.out.name not in read and _is_permuted_view(step):
                places[step.out.name] = place = _Place(place.phase + 1, inside=False)
            if place.inside:
                read.update(name for name in step.operands if places.get(name) == place)

    def sink(self) -> None:
        """Move steps that only one loop reads into it."""
        readers: dict[str, set[_Place]] = {name: set() for name in self.source.outputs}
        elsewhere = _Place(-1, inside=False)
        for name in self.source.outputs:
            readers[name].add(elsewhere)
        for step in reversed(self.source.steps):
            places = readers.get(step.out.name, {elsewhere})
            touched = any(name in self.carried for name in (*step.operands, step.out.name))
            if len(places) == 1 and not touched and not isinstance(step.op, Literal | Loop | Pick):
                (place,) = places
                if place.inside:
                    self.places[step.out.name] = place
            for name in step.operands:
                readers.setdefault(name, set()).add(self.places[step.out.name])

    def _fits(self, step: Step) -> bool:
        """Whether the step works along the index position by position, or sums over it."""
        names = (*step.operands, step.out.name)
        if not any(name in self.carried for name in names):
            return False
        if any(len(self.carried.get(name, ())) > 1 for name in names):
            return False
        op = step.op
        if isinstance(op, Networks):
            labels = self._labels(step, op)
            return len(labels) == 1 and labels.isdisjoint(moving_labels(op))
        if isinstance(op, Loop | Pick | Literal):
            return False
        made = set(self.carried.get(step.out.name, ()))
        reached = set[int | None]()
        all_places = _places(op, operand_values(self.source, step))
        for name, places in zip(step.operands, all_places, strict=True):
            carried = set(self.carried.get(name, ()))
            reached.update(places[axis] for axis in carried)
            if carried != {axis for axis, place in enumerate(places) if place in made}:
                return False
        return reached == made

    def _labels(self, step: Step, op: Networks) -> set[int]:
        wires = zip((*op.inputs, op.output), (*step.operands, step.out.name), strict=True)
        return {labels[axis] for labels, name in wires for axis in self.carried.get(name, ())}

    # ---------------------------------------------------------------- the program with loops

    def program(self) -> Program:
        loops = sorted({place.phase for place in self.places.values() if place.inside})
        if not loops:
            return self.source
        steps: list[Step] = []
        last = max(place.phase for place in self.places.values())
        for phase in range(last + 1):
            steps += self._at(phase, inside=False)
            body = self._at(phase, inside=True)
            if body:
                steps += self._loop(body)
        return replace(self.source, steps=tuple(steps))

    def _at(self, phase: int, *, inside: bool) -> list[Step]:
        wanted = _Place(phase, inside)
        return [step for step in self.source.steps if self.places[step.out.name] == wanted]

    def _loop(self, steps: Sequence[Step]) -> list[Step]:
        """The loop over the steps, and a step that takes each of its results out."""
        made = {step.out.name for step in steps}
        literals = self._literals(steps)
        read = dict.fromkeys(n for step in steps for n in step.operands if n not in made)
        operands = [name for name in read if name not in literals]
        results = [step.out.name for step in steps if step.out.name in self._wanted(made)]
        local = made.difference(results)
        inner = {name: self._inner(name, local, results) for name in (*operands, *made)}
        inner |= {name: literal.out for name, literal in literals.items()}
        arguments = tuple(Argument(inner[name], self._kind(name)) for name in operands)
        copies = self._copies(operands, steps, inner)
        body = Program(
            arguments,
            (*literals.values(), *copies, *(self._moved(step, inner) for step in steps)),
            tuple(inner[name].name for name in results),
        )
        sliced = tuple(self.axis_of(name) for name in operands)
        joined = tuple(self.axis_of(name) for name in results)
        op = Loop(body, self.index, self.size, self.width, self.block, sliced, joined)
        token = Value(self._fresh("loop"), (), "bool")
        picks = [
            Step(self.source.values[name], Pick(position), (token.name,))
            for position, name in enumerate(results)
        ]
        return [Step(token, op, tuple(operands)), *picks]

    def _copies(
        self, operands: Sequence[str], steps: Sequence[Step], inner: dict[str, Value]
    ) -> list[Step]:
        """Blocks that do not lie together in memory are copied before a contraction reads them."""
        read = {n for step in steps if isinstance(step.op, Networks) for n in step.operands}
        copies = []
        for name in operands:
            if name in read and self.axis_of(name):
                block = inner[name]
                inner[name] = replace(block, name=self._fresh(f"{name}_block"))
                axes = tuple(range(len(block.shape)))
                copies.append(Step(inner[name], Permute(axes), (block.name,)))
        return copies

    def _wanted(self, made: set[str]) -> set[str]:
        """What is read outside the loop."""
        outside = (step for step in self.source.steps if step.out.name not in made)
        return {name for step in outside for name in step.operands} | set(self.source.outputs)

    def _literals(self, steps: Iterable[Step]) -> dict[str, Step]:
        """Numbers that the steps read, made in the body."""
        found = {}
        for name in dict.fromkeys(n for step in steps for n in step.operands):
            producer = self.source.producers.get(name)
            if producer is not None and isinstance(producer.op, Literal):
                out = replace(producer.out, name=self._fresh(name))
                found[name] = Step(out, producer.op, ())
        return found

    def _kind(self, name: str) -> str:
        kinds = {a.value.name: a.kind for a in self.source.arguments}
        return kinds.get(name, "saved")

    def _inner(self, name: str, local: Collection[str], results: Collection[str]) -> Value:
        """The value as the body knows it; blocks and results have names of their own."""
        value = self.source.values[name]
        axis = self.axis_of(name)
        if axis is None and name not in results:
            return value
        shape = tuple(map(plain, resized(value.shape, axis, self.block)))
        called = name if name in local else self._fresh(f"{name}_part")
        return replace(value, name=called, shape=shape)

    def _fresh(self, wanted: str) -> str:
        name = fresh_name(wanted, self.taken)
        self.taken.add(name)
        return name

    @staticmethod
    def _moved(step: Step, inner: Mapping[str, Value]) -> Step:
        return Step(inner[step.out.name], step.op, tuple(inner[n].name for n in step.operands))
