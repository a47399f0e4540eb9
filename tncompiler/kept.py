"""Values made of parameters alone, held until a parameter changes.

What counts as a change: another object in a leaf's place, another mark of it (for tensors, where
its memory is and its version), another age (every step of an optimizer makes one), or `drop`.
Memory that is written without any of these is seen by nobody; TNC_DEBUG compares checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from tncompiler.debug import level
from tncompiler.ir.errors import StaleValues
from tncompiler.ir.origin import call_site

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Marks:
    """How to see that a leaf has changed.

    ``mark``: of one leaf, equal while it holds the same numbers; ``age``: of all; ``checksum``: of
    a leaf's numbers themselves.
    """

    mark: Callable[[Any], object]
    age: Callable[[], object]
    checksum: Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Values by the program that made them, and the leaves they were all made of."""

    age: object
    leaves: Values  # held, so that no other can come to have one's id; torch swaps no weak ones
    marks: list[object]
    checksums: tuple[bytes, ...]
    made: dict[str, Values] = field(default_factory=dict)


class KeptValues:
    """Kept values of one compiled network. Threads may share it: an entry is only ever replaced as
    a whole, or added to by those who hold the leaves it was made of."""

    def __init__(self, marks: Marks) -> None:
        self._how = marks
        self._entry: _Entry | None = None

    def drop(self) -> None:
        """Forget all values."""
        self._entry = None

    def get(self, leaves: Sequence[Any], program: str, make: Callable[[], Values]) -> Values:
        """The values that a program makes of these leaves; made now if they are not held.

        Raises StaleValues under TNC_DEBUG if a leaf was written to unseen.
        """
        age = self._how.age()  # read before the leaves are: a change meanwhile is then seen later
        marks = [*map(self._how.mark, leaves)]
        entry = self._entry
        if entry is None or not _fits(entry, age, leaves, marks):
            checksums = self._checksums(leaves) if level() else ()
            entry = self._entry = _Entry(age, tuple(leaves), marks, checksums)
        elif entry.checksums and level() and entry.checksums != self._checksums(leaves):
            raise StaleValues(
                "a parameter was written to behind its framework's back, so that what is kept of "
                "it no longer holds",
                where=call_site(),
                fix="call invalidate() after writing through .data or through another array",
            )
        values = entry.made.get(program)
        if values is None:
            values = entry.made[program] = make()
        return values

    def held(self, leaves: Sequence[Any], program: str) -> Values | None:
        """The values that a program made of these leaves; None if they are not held, or if the
        leaves are to be looked at more closely."""
        entry, age = self._entry, self._how.age()
        if entry is None or entry.checksums:
            return None
        fits = _fits(entry, age, leaves, [*map(self._how.mark, leaves)])
        return entry.made.get(program) if fits else None

    def _checksums(self, leaves: Sequence[Any]) -> tuple[bytes, ...]:
        return tuple(self._how.checksum(leaf) for leaf in leaves)


def _fits(entry: _Entry, age: object, leaves: Sequence[Any], marks: list[object]) -> bool:
    if entry.age is not age or entry.marks != marks or len(entry.leaves) != len(leaves):
        return False
    return all(map(is_, entry.leaves, leaves))
