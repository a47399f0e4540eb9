"""The open indices of a weight: input modes, then output modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import sympy

from tncompiler.ir.errors import FormatError, TncError
from tncompiler.ir.index import Index
from tncompiler.ir.sizes import Size, as_size


@dataclass(frozen=True, slots=True)
class Modes:
    """``ins`` and ``outs``: an index for each factor of the input's and of the output's size."""

    ins: tuple[Index, ...]
    outs: tuple[Index, ...]

    @staticmethod
    def of(in_shape: Any, out_shape: Any) -> Modes:
        """Modes from sizes or indices; sizes get the names i1, i2, …, o1, o2, …

        Raises: FormatError if a shape is empty, holds no sizes, or names an index twice.
        """
        modes = Modes(_indices(in_shape, "in_shape", "i"), _indices(out_shape, "out_shape", "o"))
        names = [index.name for index in modes.all]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FormatError(
                f"two modes are called {twice!r}", fix="give every mode an index of its own"
            )
        return modes

    @property
    def all(self) -> tuple[Index, ...]:
        return (*self.ins, *self.outs)

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(index.size for index in self.all)

    @property
    def known(self) -> bool:
        """Whether all sizes are integers."""
        return all(isinstance(size, int) for size in self.shape)

    def numbers(self) -> tuple[int, ...]:
        """The sizes as integers. Raises FormatError if one is a symbol."""
        if not self.known:
            raise FormatError(
                f"the sizes {self.shape} are not all numbers", fix="give integers in both shapes"
            )
        return tuple(int(size) for size in self.shape)

    def pairs(self) -> tuple[tuple[Index, ...], ...]:
        """Input and output modes side by side; the longer side's last ones stand alone."""
        count = max(len(self.ins), len(self.outs))
        return tuple((*self.ins[k : k + 1], *self.outs[k : k + 1]) for k in range(count))

    def pair_positions(self) -> tuple[tuple[int, ...], ...]:
        """The axes of the weight that `pairs` puts side by side."""
        return tuple(tuple(self.all.index(index) for index in pair) for pair in self.pairs())


def _indices(shape: Any, what: str, letter: str) -> tuple[Index, ...]:
    if isinstance(shape, int | sympy.Expr | Index):
        shape = (shape,)
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not len(shape):
        raise FormatError(
            f"{what} is {shape!r:.60}", fix="give a tuple of sizes or indices, as (4, 8, 8)"
        )
    try:
        return tuple(
            size
            if isinstance(size, Index)
            else Index(f"{letter}{k}", as_size(size, f"{what}[{k - 1}]"))
            for k, size in enumerate(shape, start=1)
        )
    except TncError as error:
        raise FormatError(error.what, fix=error.fix) from None


def size_of(indices: Sequence[Index]) -> Size:
    """The product of sizes."""
    total: Size = prod((index.size for index in indices), start=1)
    return total
