"""The axes of a program's values as tuples of atoms, the finest indices that any step sees.

In: a program. Out: for each axis of each value the atoms that make it up. Axes that steps tie
together are made of the same atoms; a split or merge takes an axis apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from tncompiler.ir.program import (
    Cast,
    Contract,
    Map,
    Merge,
    Permute,
    Program,
    Reduce,
    Split,
    Step,
)
from tncompiler.ir.sizes import Size, evaluate, same_size, symbols_of

Axis = tuple[str, int]

FREE = 4096  # stands for a free size


@dataclass(frozen=True, slots=True)
class Atom:
    """A finest index; equal atoms are one index, or indices that must be tiled alike."""

    number: int
    size: Size
    name: str


def nominal(size: Size) -> int:
    """A number for a size, to weigh plans and tiles by: free sizes are FREE."""
    return evaluate(size, dict.fromkeys(symbols_of(size), FREE))


class Unfit(Exception):
    """A program, or a part of one, is no chain; the message says why."""


def find_atoms(program: Program) -> dict[str, tuple[tuple[Atom, ...], ...]]:
    """The atoms of each axis of each value. Raises Unfit if an axis is taken apart in two ways."""
    return _Ties(program).atoms()


class _Ties:
    """Union-find over axes, with the parts that a class of axes is made of."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.parent: dict[Axis, Axis] = {}
        self.parts: dict[Axis, tuple[Axis, ...]] = {}
        for value in program.values.values():
            for axis in range(len(value.shape)):
                self.parent[value.name, axis] = (value.name, axis)
        for step in program.steps:
            self._tie_step(step)

    def find(self, axis: Axis) -> Axis:
        while self.parent[axis] != axis:
            self.parent[axis] = self.parent[self.parent[axis]]
            axis = self.parent[axis]
        return axis

    def tie(self, one: Axis, other: Axis) -> None:
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        self.parent[other] = one
        parts = self.parts.pop(other, None)
        if parts is not None:
            self.take_apart(one, parts)

    def take_apart(self, axis: Axis, parts: tuple[Axis, ...]) -> None:
        axis = self.find(axis)
        held = self.parts.setdefault(axis, parts)
        if held is parts:
            return
        if len(held) != len(parts) or not all(
            same_size(self._size(a), self._size(b)) for a, b in zip(held, parts, strict=True)
        ):
            raise Unfit("an axis is taken apart in two ways")
        for one, other in zip(held, parts, strict=True):
            self.tie(one, other)

    def _size(self, axis: Axis) -> Size:
        name, position = axis
        return self.program.values[name].shape[position]

    def _tie_step(self, step: Step) -> None:
        out, operands, op = step.out.name, step.operands, step.op
        match op:
            case Contract(inputs, output):
                self._tie_labels(step, (*inputs, output))
            case Map(_, inputs):
                self._tie_labels(step, (*inputs, tuple(range(len(step.out.shape)))))
            case Permute(axes):
                for position, axis in enumerate(axes):
                    self.tie((operands[0], axis), (out, position))
            case Cast():
                for axis in range(len(step.out.shape)):
                    self.tie((operands[0], axis), (out, axis))
            case Reduce(_, axes):
                kept = range(len(self.program.values[operands[0]].shape))
                for position, axis in enumerate(k for k in kept if k not in axes):
                    self.tie((operands[0], axis), (out, position))
            case Split(axis, count):
                self._tie_apart(operands[0], out, axis, count)
            case Merge(axis, count):
                self._tie_apart(out, operands[0], axis, count)

    def _tie_labels(self, step: Step, wires: tuple[tuple[int, ...], ...]) -> None:
        first: dict[int, Axis] = {}
        for name, labels in zip((*step.operands, step.out.name), wires, strict=True):
            for axis, label in enumerate(labels):
                self.tie(first.setdefault(label, (name, axis)), (name, axis))

    def _tie_apart(self, whole: str, parted: str, axis: int, count: int) -> None:
        """Axis `axis` of `whole` is `count` axes of `parted`."""
        for position in range(len(self.program.values[whole].shape)):
            if position < axis:
                self.tie((whole, position), (parted, position))
            elif position > axis:
                self.tie((whole, position), (parted, position + count - 1))
        self.take_apart((whole, axis), tuple((parted, axis + k) for k in range(count)))

    def atoms(self) -> dict[str, tuple[tuple[Atom, ...], ...]]:
        numbers: dict[Axis, Atom] = {}

        def resolve(axis: Axis, inside: frozenset[Axis] = frozenset()) -> tuple[Atom, ...]:
            root = self.find(axis)
            if root in inside:
                raise Unfit("an axis is a part of itself")
            if root in self.parts:
                known = inside | {root}
                return tuple(a for part in self.parts[root] for a in resolve(part, known))
            if root not in numbers:
                name, position = root
                value = self.program.values[name]
                numbers[root] = Atom(len(numbers), value.shape[position], value.axes[position])
            return (numbers[root],)

        return {
            value.name: tuple(resolve((value.name, k)) for k in range(len(value.shape)))
            for value in self.program.values.values()
        }
