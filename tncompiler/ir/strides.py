"""How arrays lie in memory: the loops that a view's axes are, and what a copy of it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# copies of this dtype and of as many bytes are asked whether they turn matrices over
TURNED, TURNED_BYTES = "float32", 2**18


class Loops(NamedTuple):
    """The loops of a copy, outermost first: ``extents``, and how many elements apart in the source
    each steps (``strides``). Axes that follow one another in source and result are one loop."""

    extents: tuple[int, ...]
    strides: tuple[int, ...]


class Turn(NamedTuple):
    """Matrices that a copy turns over: how many, and of how many rows and columns they are."""

    matrices: int
    rows: int
    columns: int


def merged(shape: Sequence[int], strides: Sequence[int]) -> Loops:
    """The loops that go through a view in order; axes of size 1 are none."""
    extents: list[int] = []
    apart: list[int] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if apart and apart[-1] == extent * stride:
            extents[-1] *= extent
            apart[-1] = stride
        else:
            extents.append(extent)
            apart.append(stride)
    return Loops(tuple(extents), tuple(apart))


def turn_of(loops: Loops) -> Turn | None:
    """The matrices, one after the other in memory, each of which such a copy transposes; None if it
    does anything else."""
    extents, strides = loops
    if len(extents) == 2:
        extents, strides = (1, *extents), (math.prod(extents), *strides)
    if len(extents) != 3:
        return None
    matrices, columns, rows = extents
    is_turned = strides == (rows * columns, 1, columns)
    return Turn(matrices, rows, columns) if is_turned else None
