"""The sum that generated loops add their blocks to."""

from __future__ import annotations

from typing import Any

import numpy as np

RADIX = 16  # parts that one level adds up before they count as one part of the next


class RunningSum:
    """Adds arrays in the order given, in place, so that rounding grows with the logarithm.

    ``zeros`` is taken over and changed. A sum of positive terms one after the other loses √n units
    in the last place; this loses about √(16 log n). It holds one array for each level.
    """

    __slots__ = ("counts", "levels")

    def __init__(self, zeros: Any) -> None:
        self.levels = [zeros]
        self.counts = [0]

    @classmethod
    def of(cls, part: Any) -> RunningSum:
        """The sum that begins with a copy of one array."""
        begun = cls(_copy(part))
        begun.counts[0] = 1
        return begun

    def add(self, part: Any) -> None:
        """Add one array."""
        self._make_room(0)
        self.levels[0] += part
        self.counts[0] += 1

    def _make_room(self, level: int) -> None:
        """Pass a full level on to the next."""
        if self.counts[level] < RADIX:
            return
        if level + 1 == len(self.levels):
            self.levels.append(_copy(self.levels[level]))
            self.counts.append(1)
        else:
            self._make_room(level + 1)
            self.levels[level + 1] += self.levels[level]
            self.counts[level + 1] += 1
        self.levels[level][...] = 0
        self.counts[level] = 0

    @property
    def total(self) -> Any:
        """The sum; nothing can be added after it."""
        *lower, total = self.levels
        for level in reversed(lower):
            total += level
        return total


def _copy(x: Any) -> Any:
    """A new array, of a number too, which could not be changed in place."""
    return np.array(x) if isinstance(x, np.ndarray | np.generic) else x.clone()
