"""A program over atoms: reshapes are left only where arrays come in, go out, or meet other steps.

In: a program with splits and merges. Out: the same program with an axis for each atom, so that what
a reshape had cut in two can be one launch.
"""

from __future__ import annotations

from collections.abc import Iterator

from tncompiler.backends.triton.atoms import Atom, Unfit, find_atoms
from tncompiler.ir.program import (
    Cast,
    Contract,
    Labels,
    Literal,
    Map,
    Merge,
    Op,
    Permute,
    Program,
    Reduce,
    Split,
    Step,
    Value,
    canonical,
    fresh_name,
)

Axes = tuple[tuple[Atom, ...], ...]


def flatten(program: Program) -> Program:
    """The program over atoms; itself where an axis is taken apart in two ways."""
    if not any(isinstance(step.op, Split | Merge) for step in program.steps):
        return program
    try:
        return _Flattening(program, find_atoms(program)).program()
    except Unfit:
        return program


class _Flattening:
    """``flat`` and ``whole``: values by name, over atoms and as the source has them."""

    def __init__(self, source: Program, atoms: dict[str, Axes]) -> None:
        self.source, self.atoms = source, atoms
        self.steps: list[Step] = []
        self.taken = set(source.values)
        self.flat: dict[str, Value] = {}
        self.whole = {a.value.name: a.value for a in source.arguments}

    def program(self) -> Program:
        for step in self.source.steps:
            self._rewrite(step)
        outputs = tuple([self._whole(name).name for name in self.source.outputs])
        return self.source.with_steps(self.steps, outputs)

    def _rewrite(self, step: Step) -> None:
        name = step.out.name
        if isinstance(step.op, Split | Merge):
            self.flat[name] = self._flat(step.operands[0])
            return
        over_atoms = self._over_atoms(step)
        if over_atoms is None:
            operands = tuple([self._whole(operand).name for operand in step.operands])
            self.whole[name] = step.out
            self.steps.append(Step(step.out, step.op, operands))
            return
        operands = tuple([self._flat(operand).name for operand in step.operands])
        atoms = list(_joined(self.atoms[name]))
        shape, axes = tuple([a.size for a in atoms]), tuple([a.name for a in atoms])
        self.flat[name] = Value(name, shape, step.out.dtype, axes)
        self.steps.append(Step(self.flat[name], over_atoms, operands))

    # ------------------------------------------------------------------ values

    def _flat(self, name: str) -> Value:
        """The value over atoms, reshaped here if it is whole."""
        if name not in self.flat:
            value = self.whole[name]
            for axis, atoms in reversed([*enumerate(self.atoms[name])]):
                if len(atoms) != 1:
                    value = self._reshaped(value, Split(axis, len(atoms)), axis, 1, atoms)
            self.flat[name] = value
        return self.flat[name]

    def _whole(self, name: str) -> Value:
        """The value as the source has it, reshaped here if it is over atoms."""
        if name not in self.whole:
            value, wanted = self.flat[name], self.source.values[name]
            for axis, atoms in enumerate(self.atoms[name]):
                if len(atoms) != 1:
                    part = Atom(0, wanted.shape[axis], wanted.axes[axis])
                    value = self._reshaped(
                        value, Merge(axis, len(atoms)), axis, len(atoms), (part,)
                    )
            self.whole[name] = value
        return self.whole[name]

    def _reshaped(
        self, value: Value, op: Op, axis: int, count: int, parts: tuple[Atom, ...]
    ) -> Value:
        """`count` axes from `axis` on replaced."""
        parts = tuple(parts)
        before, after = slice(axis), slice(axis + count, None)
        name = fresh_name(f"{value.name}_parts", self.taken)
        self.taken.add(name)
        shape = (*value.shape[before], *[p.size for p in parts], *value.shape[after])
        axes = (*value.axes[before], *[p.name for p in parts], *value.axes[after])
        made = Value(name, shape, value.dtype, axes)
        self.steps.append(Step(made, op, (value.name,)))
        return made

    # ------------------------------------------------------------------ steps

    def _over_atoms(self, step: Step) -> Op | None:
        """The step's operation over atoms; None for one that asks for whole axes."""
        match step.op:
            case Literal() | Cast():
                return step.op
            case Contract(inputs, output):
                names = (*step.operands, step.out.name)
                *wires, out = self._wires(names, (*inputs, output))
                return canonical(Contract(tuple(wires), out))
            case Map(function, inputs):
                names, own = (*step.operands, step.out.name), range(len(step.out.shape))
                *wires, out = self._wires(names, (*inputs, tuple(own)))
                place = {label: position for position, label in enumerate(out)}
                return Map(function, tuple([tuple([place[k] for k in wire]) for wire in wires]))
            case Permute(axes):
                return Permute(tuple(self._positions(step.operands[0], axes)))
            case Reduce(function, axes):
                return Reduce(function, tuple(self._positions(step.operands[0], axes)))
        return None

    def _wires(self, names: tuple[str, ...], wires: tuple[Labels, ...]) -> tuple[Labels, ...]:
        """Labels of atoms for labels of axes: all axes of a label are made of the same atoms."""
        first: dict[int, int] = {}
        made, count = [], 0
        for name, labels in zip(names, wires, strict=True):
            own: list[int] = []
            for label, atoms in zip(labels, self.atoms[name], strict=True):
                if label not in first:
                    first[label], count = count, count + len(atoms)
                own += range(first[label], first[label] + len(atoms))
            made.append(tuple(own))
        return tuple(made)

    def _positions(self, name: str, axes: Labels) -> Iterator[int]:
        """Where the atoms of some axes are."""
        atoms = self.atoms[name]
        for axis in axes:
            start = len([*_joined(atoms[:axis])])
            yield from range(start, start + len(atoms[axis]))


def _joined(axes: Axes) -> Iterator[Atom]:
    for axis in axes:
        yield from axis
