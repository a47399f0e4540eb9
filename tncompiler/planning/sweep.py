"""Orders that take one tensor, the largest of each contraction, through all others one by one.

In: a logical program and sizes. Out: an order for each contraction of more than two operands. Every
intermediate then carries the large tensor's indices, and nothing is made of small ones alone, or
nothing that is large: what a kernel that streams the large one wants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from tncompiler.ir.program import Contract, Labels, Program
from tncompiler.ir.sizes import Binding, Size, evaluate

SsaPath = tuple[tuple[int, int], ...]

JOINED = (0, 2**11)  # elements that small tensors are joined to before a sweep, in the sweeps tried


def sweep_orders(program: Program, sizes: Binding, joined: int = 0) -> dict[str, SsaPath]:
    """By contraction, the sweep whose next result is always the smallest.

    ``joined``: so many elements at most are made of small tensors beforehand, whose indices the
    large one or the result then has next to each other: fewer steps take the large one through.
    """
    return {
        step.out.name: _Sweep(
            step.op, _extents(program, step.operands, step.op.inputs, sizes)
        ).path(joined)
        for step in program.steps
        if isinstance(step.op, Contract) and sum(map(bool, step.op.inputs)) > 2
    }


def _extents(
    program: Program, operands: tuple[str, ...], inputs: tuple[Labels, ...], sizes: Binding
) -> Mapping[int, int]:
    """The extent of each label."""
    found: dict[int, Size] = {}
    for name, labels in zip(operands, inputs, strict=True):
        found.update(zip(labels, program.values[name].shape, strict=True))
    return {label: evaluate(size, sizes) for label, size in found.items()}


class _Sweep:
    """One contraction's order while it is made; ``waiting``: the tensors beside the large one."""

    def __init__(self, op: Contract, extents: Mapping[int, int]) -> None:
        self.output, self.extents = {*op.output}, extents
        tensors = [labels for labels in op.inputs if labels]  # orders do not count scalars
        self.waiting = {number: {*labels} for number, labels in enumerate(tensors)}
        self.held = max(self.waiting, key=lambda number: self._elements(self.waiting[number]))
        self.labels = self.waiting.pop(self.held)
        self.given = self.labels
        self.count = len(tensors)
        self.pairs: list[tuple[int, int]] = []

    def path(self, joined: int) -> SsaPath:
        """The order, after small tensors are joined to at most so many elements."""
        while pair := self._small_pair(joined):
            made = self._result(*pair)
            number = self._take(*pair)
            for taken in pair:
                del self.waiting[taken]
            self.waiting[number] = made
        while self.waiting:
            near = [n for n in self.waiting if self.labels & self.waiting[n]] or [*self.waiting]
            number = min(near, key=lambda n: self._elements(self._result(self.held, n)))
            self.labels = self._result(self.held, number)
            self.held = self._take(self.held, number)
            del self.waiting[number]
        return tuple(self.pairs)

    def _take(self, *pair: int) -> int:
        self.pairs.append(pair)  # type: ignore[arg-type]
        return self.count + len(self.pairs) - 1

    def _elements(self, labels: set[int]) -> int:
        return math.prod(self.extents[label] for label in labels)

    def _of(self, number: int) -> set[int]:
        return self.labels if number == self.held else self.waiting[number]

    def _result(self, a: int, b: int) -> set[int]:
        """What is left of two tensors' labels: what the result or another tensor has."""
        others = [own for n, own in self.waiting.items() if n not in (a, b)]
        others += [] if self.held in (a, b) else [self.labels]
        return (self._of(a) | self._of(b)) & self.output.union(*others)

    def _small_pair(self, most: int) -> tuple[int, int] | None:
        """Two tensors with a bond that make the smallest one of at most so many elements, the last
        of equal ones: the innermost indices of what lies in memory stay together.
        """
        pairs = [
            (a, b)
            for a, b in itertools.combinations(self.waiting, 2)
            if self.waiting[a] & self.waiting[b]
            and self._elements(self._result(a, b)) <= most
            and self._is_one_sided(self.waiting[a] | self.waiting[b])
        ]
        return min(reversed(pairs), key=lambda p: self._elements(self._result(*p)), default=None)

    def _is_one_sided(self, labels: set[int]) -> bool:
        """Whether the large tensor has its share of the labels, or the result, but not both."""
        into, out = labels & self.given - self.output, labels & self.output - self.given
        return bool(into) != bool(out)
