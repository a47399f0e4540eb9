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

Order = tuple[int, ...]

_LINE = 64  # bytes
_WAYS = 16  # lines of any addresses that caches have room for
_MOST_APART = (
    1024  # bytes; lines a power of two apart share places, and are prefetched where so far
)


class Again(NamedTuple):
    """How often lines are fetched again: ``share``, of once for each element; ``span``: the bytes
    of cache that what is read in between takes."""

    share: float
    span: int


class Walk(NamedTuple):
    """``run``: elements of the innermost axes of the result that lie as in the source; ``kept``:
    whether its last axis is the source's last too; ``block``: elements of the two innermost loops;
    ``again``: lines that are fetched again."""

    run: int
    kept: bool
    block: int
    again: tuple[Again, ...]


def walk(
    source: Sequence[int],
    order: Sequence[int],
    sizes: Mapping[int, int] | Sequence[int],
    item: int,
) -> Walk | None:
    """How the axes ``source``, outermost first, are copied in another order; None if in order, or
    if there is nothing to copy.

    ``sizes``: by axis; axes of size 1 move for nothing. ``item``: bytes of an element.
    """
    source = [axis for axis in source if sizes[axis] != 1]
    order = [axis for axis in order if sizes[axis] != 1]
    if source == order or any(sizes[axis] == 0 for axis in source):
        return None
    kept = order[-1] == source[-1]
    first = _loop(source, order, len(order))
    second = _loop(source, order, first)
    run, block = (math.prod([sizes[axis] for axis in order[k:]]) for k in (first, second))
    return Walk(run, kept, block, _fetched_again(source, order, sizes, item))


def _loop(source: Sequence[int], order: Sequence[int], end: int) -> int:
    """Where in the result's axes the loop begins that ends before ``end``: axes that follow one
    another in the source are one."""
    first = max(end - 1, 0)
    while first and source.index(order[first]) == source.index(order[first - 1]) + 1:
        first -= 1
    return first


def _fetched_again(
    source: Sequence[int], order: Sequence[int], sizes: Mapping[int, int] | Sequence[int], item: int
) -> tuple[Again, ...]:
    """For each axis along which a line holds neighbours, from the innermost of the result on."""
    strides, stride = {}, item
    for axis in reversed(source):
        strides[axis] = stride
        stride *= sizes[axis]
    found = []
    before, lines, span, apart = 1.0, 1.0, _LINE, _MOST_APART  # of what is inside
    for axis in reversed(order):
        stride, size = strides[axis], sizes[axis]
        if stride < _LINE:
            neighbours = min(size, _LINE / stride)
            if lines > _WAYS:
                taken = min(span, int(lines * max(apart, _LINE)))
                found.append(Again((neighbours - 1) / (before * neighbours), taken))
            before *= neighbours
        lines *= max(1.0, size * min(stride, _LINE) / _LINE)
        span += (size - 1) * stride
        apart = math.gcd(apart, stride)
    return tuple(found)


def halfway(source: Order, order: Order) -> Order | None:
    """The axes after the first of two copies: as in the source, but with the result's last axis
    last; None where that is the source or the result."""
    last = order[-1]
    between = (*(axis for axis in source if axis != last), last)
    return None if between in (source, order) else between
