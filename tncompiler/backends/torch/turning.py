"""Copies that turn matrices over, in squares of registers and by all threads.

torch copies a permuted view element by element. What it has for shuffling the channels of images
turns a matrix over for every pixel, (groups, channels) to (channels, groups), and takes a half to
an eighth of the time: in float32 alone, on a CPU.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import channel_shuffle

from tncompiler.backends.numpy.memory import fresh
from tncompiler.ir.strides import TURNED, TURNED_BYTES, merged, turn_of

_TURNED: torch.dtype = getattr(torch, TURNED)
# rows or columns that are turned in one go; elements of a matrix all of whose lines stay in a cache
_NARROW, _CLOSE = 16, 2**16
# what larger matrices are cut into first
_PIECE = {"columns": 32, "rows": 64}
# bytes up to which allocators keep what was freed, and that a part of a larger result takes
_KEPT, _PART = 2**25, 2**20

Strided = tuple[tuple[int, ...], tuple[int, ...]]  # sizes and strides


def turned(view: Tensor) -> Tensor | None:
    """A contiguous copy of a view of matrices, each transposed; None of any other view.

    ``view``: on a CPU.
    """
    if view.dtype is not _TURNED or view.nbytes < TURNED_BYTES:
        return None
    shape = view.shape
    found = _found(shape, view.stride())
    if found is None:
        return None
    if found.at_once:
        return _shuffled(view.as_strided(*found.image), found.rows).view(shape)
    return _in_pieces(view.as_strided(*found.matrices)).view(shape)


class _Matrices(NamedTuple):
    """What is turned over: (count, rows, columns), or an image whose pixels are the matrices.

    ``at_once``: they are neither cut up nor too many.
    """

    matrices: Strided
    image: Strided
    rows: int
    at_once: bool


@lru_cache(4096)  # code that runs once between products takes longer than a small copy
def _found(shape: tuple[int, ...], strides: tuple[int, ...]) -> _Matrices | None:
    found = turn_of(merged(shape, strides))
    if found is None:
        return None
    count, rows, columns = found
    size = rows * columns
    return _Matrices(
        matrices=((count, rows, columns), (size, columns, 1)),
        image=((1, size, count, 1), (count * size, 1, size, size)),
        rows=rows,
        at_once=_is_kept(count, size) and _cut(rows, columns) is None,
    )


def _in_pieces(matrices: Tensor) -> Tensor:
    """Large matrices or many, each transposed: shapes (count, rows, columns), (count, columns,
    rows)."""
    count, rows, columns = matrices.shape
    cut = _cut(rows, columns)
    if cut is None:
        return _each(matrices)
    kind, piece = cut
    if kind == "columns":
        pieces = columns // piece
        runs = _in_left_memory(count, pieces, rows, piece)
        runs.copy_(matrices.view(count, rows, pieces, piece).transpose(1, 2))
        return _each(runs.view(count * pieces, rows, piece))
    pieces = rows // piece
    turned_pieces = _each(matrices.view(count * pieces, piece, columns))
    made = _in_left_memory(count, columns, pieces, piece)
    made.copy_(turned_pieces.view(count, pieces, columns, piece).transpose(1, 2))
    return made


def _in_left_memory(*shape: int) -> Tensor:
    return torch.from_numpy(fresh(shape, TURNED))


def _each(matrices: Tensor) -> Tensor:
    """Each of these transposed.

    The result of the shuffle is in memory of torch's own, which the system takes back and clears
    where it is large: then part by part into memory that earlier tensors have left.
    """
    count, rows, columns = matrices.shape
    size = rows * columns
    if _is_kept(count, size):
        return _at_once(matrices)
    made = _in_left_memory(count, columns, rows)
    some = max(_PART // (size * matrices.itemsize), 1)
    for first in range(0, count, some):
        made[first : first + some] = _at_once(matrices[first : first + some])
    return made


def _at_once(matrices: Tensor) -> Tensor:
    count, rows, columns = matrices.shape
    image = matrices.view(1, count, 1, rows * columns).permute(0, 3, 1, 2)
    return _shuffled(image, rows).view(count, columns, rows)


def _shuffled(image: Tensor, rows: int) -> Tensor:
    """The pixels of an image, each a matrix of so many rows that is turned over."""
    return channel_shuffle(image, rows).permute(0, 2, 3, 1)


def _is_kept(count: int, size: int) -> bool:
    """Whether allocators keep the memory of so many matrices of that size."""
    return count == 1 or count * size * _TURNED.itemsize <= _KEPT


@cache
def _cut(rows: int, columns: int) -> tuple[str, int] | None:
    """What a matrix is cut along, and how long the pieces are; None if it is turned in one go."""
    if rows * columns <= _CLOSE or min(rows, columns) <= _NARROW:
        return None
    kind, extent = ("columns", columns) if columns >= rows else ("rows", rows)
    piece = _piece(extent, _PIECE[kind])
    return None if piece is None else (kind, piece)


def _piece(extent: int, near: int) -> int | None:
    """The divisor of an extent that is nearest to a size, in ratio, of those that are near."""
    divisors = [d for d in range(near // 2, 4 * near + 1) if extent % d == 0 and d < extent]
    return min(divisors, key=lambda d: abs(math.log(d / near)), default=None)
