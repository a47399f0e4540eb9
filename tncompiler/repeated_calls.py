"""A call of a NumPy function that is like the last one, seen with as few questions as possible.

As for training steps (`repeated_steps`): what a call does before its program runs in cold caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np


class RepeatedCall:
    """A call on some inputs and what it ran, which any call of the same kind can run again.

    ``cells`` hold the parameters, which were ``held``; ``rest`` is what was read after the inputs,
    and ``crossing`` the module that brings arrays to tensors and back, where those ran. ``age``:
    of what was kept then.
    """

    __slots__ = ("_cells", "_crossing", "_held", "_kinds", "_rest", "_run", "age")

    def __init__(
        self,
        inputs: Sequence[np.ndarray],
        cells: Sequence[list[np.ndarray]],
        held: Sequence[np.ndarray],
        run: Callable[..., Any],
        rest: Sequence[Any],
        crossing: ModuleType | None,
        age: object,
    ) -> None:
        self.age = age
        self._kinds = [(array.shape, array.dtype.char) for array in inputs]
        self._cells, self._held = cells, held
        self._run, self._rest, self._crossing = run, rest, crossing

    def results(self, inputs: Sequence[Any]) -> Any | None:
        """What the program gives for these; None if they are of another kind, a parameter was
        replaced or tensors must not run now."""
        if len(inputs) != len(self._kinds):
            return None
        for array, (shape, char) in zip(inputs, self._kinds, strict=True):
            if type(array) is not np.ndarray or array.shape != shape or array.dtype.char != char:
                return None
        for cell, array in zip(self._cells, self._held, strict=True):
            if cell[0] is not array:
                return None
        crossing = self._crossing
        if crossing is None:
            return self._run(*inputs, *self._rest)
        if not crossing.can_run():
            return None
        return crossing.arrays_of(self._run(*crossing.tensors_of(inputs), *self._rest))
