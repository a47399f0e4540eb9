"""Arrays in memory that earlier ones have left.

The system clears every page that it hands out, which takes longer than a product writes it, and
allocators give large blocks back at once. Here what an array leaves when nobody holds it or a view
of it any more is kept for the next array of that size. An array belongs to whoever holds it:
results may be kept for ever and changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_BYTES = 2**16  # smaller arrays come from the allocator, which keeps such blocks itself
MOST_BYTES = 2**28  # that are kept in all


class _Block(np.ndarray):
    """Memory. Its own type, since arrays take the base of their base if it is of their type."""


class _Lease(np.ndarray):
    """A block in use: the base of an array and all its views, so that it dies with the last."""

    def __del__(self) -> None:
        block = self.base
        if isinstance(block, _Block) and block.nbytes + kept_bytes() <= MOST_BYTES:
            _left.setdefault(block.nbytes, []).append(block)


_left: dict[int, list[_Block]] = {}  # number of bytes → blocks that nobody uses


def kept_bytes() -> int:
    """What is kept for arrays to come."""
    return sum(size * len(blocks) for size, blocks in list(_left.items()))


def release() -> None:
    """Give everything back that is kept."""
    _left.clear()


def fresh(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A new array of any content."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size < LEAST_BYTES:
        return np.empty(shape, dtype)
    rounded = _rounded(size)
    blocks = _left.get(rounded)
    try:
        block = blocks.pop() if blocks else _Block((rounded,), np.uint8)
    except IndexError:  # another thread has taken the last
        block = _Block((rounded,), np.uint8)
    lease = _Lease((rounded,), np.uint8, buffer=block)
    return np.ndarray(tuple(shape), dtype, buffer=lease)


def _rounded(size: int) -> int:
    """A size that others share: at most an eighth more."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def copied(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The array copied in the order of its axes, into ``out`` if that is given."""
    if out is None:
        out = fresh(x.shape, x.dtype)
    out[...] = x
    return out
