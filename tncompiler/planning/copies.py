"""How a permuting copy goes through the memory that it reads, and the way in two copies.

A copy writes in order and reads in strides. A line of the cache that it fetches holds neighbours
along the innermost axes of what is read; they are wanted when those axes come on, after all axes
that are inside of them in the result. If what lies in between has left the cache, a line is fetched
once for each of its elements, which takes up to six times as long. Then two copies take less: one
that brings the elements of a run together, within a stretch that stays in the cache, and one that
moves whole runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tncompiler.ir.strides import Loops, merged

Order = tuple[int, ...]

_LINE = 64  # bytes
_WAYS = 16  # lines of any addresses that caches have room for
# lines a power of two of bytes apart share places, but are prefetched where they are so far apart
_MOST_APART = 1024


class Again(NamedTuple):
    """How often lines are fetched again: ``share``, of once for each element; ``span``: the bytes
    of cache that what is read in between takes."""

    share: float
    span: int


class Walk(NamedTuple):
    """``run``: elements of the innermost loop; ``kept``: whether they lie together in the source
    too; ``block``: elements of the two innermost loops; ``again``: lines that are fetched again."""

    run: int
    kept: bool
    block: int
    again: tuple[Again, ...]


def loops_of(
    source: Sequence[int], order: Sequence[int], sizes: Mapping[int, int] | Sequence[int]
) -> Loops | None:
    """How the axes ``source``, outermost first, are copied in another order; None if in order, or
    if there is nothing to copy.

    ``sizes``: by axis; axes of size 1 move for nothing.
    """
    strides, stride = {}, 1
    for axis in reversed(source):
        strides[axis] = stride
        stride *= sizes[axis]
    loops = merged([sizes[axis] for axis in order], [strides[axis] for axis in order])
    return None if len(loops.extents) < 2 or 0 in loops.extents else loops


def walk(loops: Loops, item: int) -> Walk:
    """What a copy in these loops does; ``item``: bytes of an element.

    Lines are fetched again along each loop that steps within a line, unless what is inside of it is
    little.
    """
    found = []
    before, lines, span, apart = 1.0, 1.0, _LINE, _MOST_APART  # of what is inside
    for size, stride in zip(reversed(loops.extents), reversed(loops.strides), strict=True):
        step = stride * item
        if step < _LINE:
            neighbours = min(size, _LINE / step)
            if lines > _WAYS:
                taken = min(span, int(lines * max(apart, _LINE)))
                found.append(Again((neighbours - 1) / (before * neighbours), taken))
            before *= neighbours
        lines *= max(1.0, size * min(step, _LINE) / _LINE)
        span += (size - 1) * step
        apart = math.gcd(apart, step)
    run, kept = loops.extents[-1], loops.strides[-1] == 1
    return Walk(run, kept, run * loops.extents[-2], tuple(found))


def halfway(source: Order, order: Order) -> Order | None:
    """The axes after the first of two copies: as in the source, but with the result's last axis
    last; None where that is the source or the result."""
    last = order[-1]
    between = (*(axis for axis in source if axis != last), last)
    return None if between in (source, order) else between
