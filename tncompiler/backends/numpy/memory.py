"""Arrays in memory that earlier ones have left.

The system clears every page that it hands out, which takes longer than a product writes it, and
allocators give large blocks back at once. Here what an array leaves when nobody holds it or a view
of it any more is kept for the next array of about that size. An array belongs to whoever holds it:
results may be kept for ever and changed.

Whether a piece of memory is used is read off its references, not noted by its users: this runs
between products, in cold caches, where every line of it takes as long as a hundred elsewhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from sys import getrefcount
from threading import RLock
from typing import Any

import numpy as np

LEAST_BYTES = 2**16  # smaller arrays come from the allocator, which keeps such blocks itself
MOST_BYTES = 2**30  # of all pieces that are known, used or not
_ALIGNED = 64  # bytes: of a vector, of a line of the cache
_BUSY = 64  # pieces of one size in use: beyond it the first are forgotten, and freed by their users
_SIZES = 2**14  # that are looked up without rounding
_ITEM = np.dtype(np.float32)  # what pieces are arrays of


class _Block(np.ndarray):
    """Memory. Its own type, since arrays take the base of their base if it is of their type: so
    what is made of a piece holds the piece, and not the block behind it."""


def _count_unused() -> tuple[int, int]:
    pieces = [np.empty(1)]
    listed = getrefcount(pieces[0])
    piece = pieces.pop()
    return listed, getrefcount(piece)


# references to a piece that nobody uses: in its list, and taken out of it
_LISTED, _TAKEN = _count_unused()


class _Pieces(list[np.ndarray]):
    """Pieces of one size. ``asked``: how often pieces had been forgotten when one was asked for."""

    asked = 0


class _Left:
    """Pieces of memory by their bytes, those that were used last at the end of their list.

    Threads share it without a lock: a piece is looked at again once it is out of its list, where
    nobody else finds it. The lock is for making and forgetting them.
    """

    def __init__(self) -> None:
        self.pieces: dict[int, _Pieces] = {}  # by bytes
        self.by_size: dict[int, _Pieces] = {}  # the same lists, by what was asked for
        self.bytes = 0
        self.forgotten = 0  # how often there were too many
        self.lock = RLock()

    def piece(self, size: int) -> np.ndarray:
        """Memory of so many bytes or a few more, unused until now: one axis of float32."""
        pieces = self.by_size.get(size)
        if pieces is None:
            pieces = self._list_of(size)
        pieces.asked = self.forgotten
        for position in range(len(pieces) - 1, -1, -1):
            piece = self._take(pieces, position)
            if piece is not None:
                pieces.append(piece)
                return piece
        return self._new(_rounded(size), pieces)

    def _list_of(self, size: int) -> _Pieces:
        with self.lock:
            if len(self.by_size) > _SIZES:
                self.by_size.clear()
            found = self.by_size[size] = self.pieces.setdefault(_rounded(size), _Pieces())
        return found

    @staticmethod
    def _take(pieces: list[np.ndarray], position: int) -> np.ndarray | None:
        """The piece there, out of the list; None if it is used, or somebody was quicker."""
        try:
            if getrefcount(pieces[position]) != _LISTED:
                return None
            piece = pieces.pop(position)
        except IndexError:
            return None
        if getrefcount(piece) == _TAKEN:
            return piece
        pieces.append(piece)
        return None

    def clear(self) -> None:
        """Let go of all pieces."""
        with self.lock:
            self.pieces.clear()
            self.by_size.clear()
            self.bytes = 0

    def _new(self, size: int, pieces: _Pieces) -> np.ndarray:
        block = _Block((size + _ALIGNED,), np.uint8)
        first = -block.ctypes.data % _ALIGNED
        piece = np.ndarray((size // _ITEM.itemsize,), _ITEM, block, first)
        if size > MOST_BYTES:
            return piece
        with self.lock:
            if len(pieces) >= _BUSY:
                del pieces[0]
                self.bytes -= size
            self.bytes += size
            if self.bytes > MOST_BYTES:
                self._forget()
            pieces.append(piece)
        return piece

    def _forget(self) -> None:
        """Let go of pieces until few enough are known: of sizes that nobody has asked for since
        the last time, then of used ones, which their users free, then of any."""
        last, self.forgotten = self.forgotten, self.forgotten + 1
        stale = {size: pieces for size, pieces in self.pieces.items() if pieces.asked < last}
        for lists, used in ((stale, False), (self.pieces, True), (self.pieces, False)):
            for size, pieces in list(lists.items()):
                self._forget_of(size, pieces, used)

    def _forget_of(self, size: int, pieces: list[np.ndarray], used: bool) -> None:
        position = 0
        with suppress(IndexError):  # another thread has one out of the list
            while position < len(pieces) and self.bytes > MOST_BYTES:
                if (getrefcount(pieces[position]) != _LISTED) == used:
                    del pieces[position]
                    self.bytes -= size
                else:
                    position += 1

    def unused_bytes(self) -> int:
        return sum(size * _unused(pieces) for size, pieces in list(self.pieces.items()))


def _unused(pieces: list[np.ndarray]) -> int:
    """How many of these are not used."""
    count = 0
    with suppress(IndexError):  # another thread has one out of the list
        for position in range(len(pieces)):
            count += getrefcount(pieces[position]) == _LISTED
    return count


_left = _Left()
piece = _left.piece
if hasattr(os, "register_at_fork"):  # a thread that is not in the child may have had the lock
    os.register_at_fork(after_in_child=_left.__init__)  # type: ignore[misc]


def kept_bytes() -> int:
    """What is kept for arrays to come."""
    return _left.unused_bytes()


def release() -> None:
    """Give everything back that is kept."""
    _left.clear()


def fresh(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A new array of any content."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.empty(shape, dtype) if size < LEAST_BYTES else np.ndarray(shape, dtype, piece(size))


def _rounded(size: int) -> int:
    """A size that others share: at most an eighth more."""
    step = max(1 << max(size.bit_length() - 4, 0), _ALIGNED)
    return -(-size // step) * step


def copied(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The array copied in the order of its axes, into ``out`` if that is given."""
    if out is None:
        out = fresh(x.shape, x.dtype)
    out[...] = x
    return out
