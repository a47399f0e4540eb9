"""A NumPy function's parameters: arrays by name that are replaced, never written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from tncompiler.ir.errors import ArgumentError, DTypeError, ShapeError
from tncompiler.ir.origin import call_site


class Parameters(MutableMapping[str, np.ndarray]):
    """Parameters by name: read-only arrays, replaced by assignment; names cannot be added."""

    def __init__(self, arrays: Mapping[str, np.ndarray], shared: Parameters | None = None) -> None:
        self._cells = {name: [_read_only(array)] for name, array in arrays.items()}
        if shared is not None:
            for name in self._cells.keys() & shared._cells.keys():
                self._check(name, shared[name])
                self._cells[name] = shared._cells[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._cells[name][0]

    def cells_of(self, names: Sequence[str]) -> list[list[np.ndarray]]:
        """Where these are held, each alone in a list that all who share it have."""
        return [self._cells[name] for name in names]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._cells:
            raise ArgumentError(
                f"there is no parameter {name!r}",
                where=call_site(),
                fix=f"the parameters are: {sorted(self)}",
            )
        try:
            new = np.asarray(value)
        except ValueError as error:
            raise ShapeError(
                f"parameter {name!r}: {error}", where=call_site(), fix="give an array"
            ) from None
        self._check(name, new)
        self._cells[name][0] = _read_only(new.astype(self[name].dtype))

    def _check(self, name: str, new: np.ndarray) -> None:
        old = self[name]
        if new.shape != old.shape:
            raise ShapeError(
                f"parameter {name!r} has shape {old.shape}, not {new.shape}",
                where=call_site(),
                fix="assign an array of the same shape",
            )
        if not np.can_cast(new.dtype, old.dtype, "same_kind"):
            raise DTypeError(
                f"parameter {name!r} has dtype {old.dtype}; {new.dtype} does not fit",
                where=call_site(),
                fix=f"convert it with .astype({old.dtype.name!r})",
            )

    def __delitem__(self, name: str) -> None:
        raise ArgumentError(
            "parameters cannot be removed", where=call_site(), fix="assign another array instead"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self.items())
        return f"Parameters({shapes})"


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.array(array)
    view.flags.writeable = False
    return view
