"""Copies that turn matrices over, in squares of registers and by all threads.

torch copies a permuted view element by element. What it has for shuffling the channels of images
turns a matrix over for every pixel, (groups, channels) to (channels, groups), and takes a half to
an eighth of the time: in float32 alone, on a CPU.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import channel_shuffle

from tncompiler.backends.numpy.memory import fresh
from tncompiler.ir.strides import TURNED, TURNED_BYTES, merged, turn_of

# rows or columns that are turned in one go; elements of a matrix all of whose lines stay in a cache
_NARROW, _CLOSE = 16, 2**16
# what larger matrices are cut into first
_PIECE = {"columns": 32, "rows": 64}
# bytes up to which allocators keep what was freed, and that a part of a larger result takes
_KEPT, _PART = 2**25, 2**20


def turned(view: Tensor) -> Tensor | None:
    """A contiguous copy of a view of matrices, each transposed; None of any other view.

    ``view``: on a CPU.
    """
    if view.dtype != getattr(torch, TURNED) or view.nbytes < TURNED_BYTES:
        return None
    found = turn_of(merged(view.shape, view.stride()))
    if found is None:
        return None
    count, rows, columns = found
    matrices = view.as_strided((count, rows, columns), (rows * columns, columns, 1))
    far = rows * columns > _CLOSE and min(rows, columns) > _NARROW
    kind, extent = ("columns", columns) if columns >= rows else ("rows", rows)
    piece = _piece(extent, _PIECE[kind]) if far else None
    if piece is None:
        return _each(matrices).view(view.shape)
    pieces = extent // piece
    if kind == "columns":
        runs = _in_left_memory(count, pieces, rows, piece)
        runs.copy_(matrices.view(count, rows, pieces, piece).transpose(1, 2))
        return _each(runs.view(count * pieces, rows, piece)).view(view.shape)
    turned_pieces = _each(matrices.view(count * pieces, piece, columns))
    made = _in_left_memory(count, columns, pieces, piece)
    made.copy_(turned_pieces.view(count, pieces, columns, piece).transpose(1, 2))
    return made.view(view.shape)


def _in_left_memory(*shape: int) -> Tensor:
    return torch.from_numpy(fresh(shape, TURNED))


def _each(matrices: Tensor) -> Tensor:
    """Contiguous matrices, each transposed: shapes (count, rows, columns), (count, columns, rows).

    The result of the shuffle is in memory of torch's own, which the system takes back and clears
    where it is large: then part by part into memory that earlier tensors have left.
    """
    count, rows, columns = matrices.shape
    size = rows * columns * matrices.itemsize
    if count * size <= _KEPT or count == 1:
        return _shuffled(matrices)
    made = _in_left_memory(count, columns, rows)
    some = max(_PART // size, 1)
    for first in range(0, count, some):
        made[first : first + some] = _shuffled(matrices[first : first + some])
    return made


def _shuffled(matrices: Tensor) -> Tensor:
    """The same, as one image with a pixel for each matrix, whose channels come last in memory."""
    count, rows, columns = matrices.shape
    image = matrices.view(1, count, 1, rows * columns).permute(0, 3, 1, 2)
    channels_last = channel_shuffle(image, rows).permute(0, 2, 3, 1)
    return channels_last.reshape(count, columns, rows)


@cache
def _piece(extent: int, near: int) -> int | None:
    """The divisor of an extent that is nearest to a size, in ratio, of those that are near."""
    divisors = [d for d in range(near // 2, 4 * near + 1) if extent % d == 0 and d < extent]
    return min(divisors, key=lambda d: abs(math.log(d / near)), default=None)
