"""Arrays in memory that earlier ones have left.

The system clears every page that it hands out, which takes longer than a product writes it, and
allocators give large blocks back at once. Here what an array leaves when nobody holds it or a view
of it any more is kept for the next array of that size. An array belongs to whoever holds it:
results may be kept for ever and changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import RLock
from typing import Any

import numpy as np

LEAST_BYTES = 2**16  # smaller arrays come from the allocator, which keeps such blocks itself
MOST_BYTES = 2**30  # that are kept in all; beyond it go those that were left first
_ALIGNED = 64  # bytes: of a vector, of a line of the cache


class _Block(np.ndarray):
    """Memory. Its own type, since arrays take the base of their base if it is of their type."""

    first: int  # where in it arrays begin


class _Lease(np.ndarray):
    """A block in use: the base of an array and all its views, so that it dies with the last."""

    def __del__(self) -> None:
        block = self.base
        if isinstance(block, _Block):
            _left.keep(block)


class _Left:
    """Blocks that nobody uses, by their bytes: the size last that was left last."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[_Block]] = {}
        self.bytes = 0
        self.lock = RLock()  # a block may be left in the middle of all this

    def keep(self, block: _Block) -> None:
        with self.lock:
            same = self.blocks.pop(block.nbytes, [])
            self.blocks[block.nbytes] = [*same, block]
            self.bytes += block.nbytes
            while self.bytes > MOST_BYTES:
                self.take(next(iter(self.blocks)))

    def take(self, size: int) -> _Block | None:
        with self.lock:
            same = self.blocks.get(size)
            if same is None:
                return None
            block = same.pop()
            if not same:
                del self.blocks[size]
            self.bytes -= size
            return block


_left = _Left()
if hasattr(os, "register_at_fork"):  # a thread that is not in the child may have had the lock
    os.register_at_fork(after_in_child=_left.__init__)  # type: ignore[misc]


def kept_bytes() -> int:
    """What is kept for arrays to come."""
    return _left.bytes


def release() -> None:
    """Give everything back that is kept."""
    while _left.blocks:
        _left.take(next(iter(_left.blocks)))


def memory(size: int) -> np.ndarray:
    """So many bytes of any content, until nobody holds them or a view of them."""
    rounded = _rounded(size) + _ALIGNED
    block = _left.take(rounded)
    if block is None:
        block = _Block((rounded,), np.uint8)
        block.first = -block.ctypes.data % _ALIGNED
    return _Lease((size,), np.uint8, buffer=block, offset=block.first)


def fresh(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A new array of any content."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size < LEAST_BYTES:
        return np.empty(shape, dtype)
    return np.ndarray(tuple(shape), dtype, buffer=memory(size))


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
