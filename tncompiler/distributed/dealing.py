"""Deal slices out: to each rank a run of them, so that all have as much to do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from tncompiler.distributed.stages import Level, Slices

OVERHEAD = 0.02  # of a whole slice: what a slice costs however short its blocks are


def deal(slices: Slices, world: int) -> tuple[range, ...]:
    """The slices of each rank, in ascending order; some have none where there are too few.

    A slice weighs what the positions of its blocks come to: last blocks may be shorter.
    """
    count = slices.count
    if count <= world:
        return tuple(range(min(r, count), min(r + 1, count)) for r in range(world))
    total = work_before(slices, count)
    edges = [0]
    for rank in range(1, world):
        edges.append(max(edges[-1], _nearest(slices, total * rank / world)))
    edges.append(count)
    return tuple(range(a, b) for a, b in pairwise(edges))


def work_before(slices: Slices, number: int) -> float:
    """The work of all slices before one, in positions, with what every slice costs besides."""
    whole = prod(min(level.loop.width, level.size) for level in slices.levels)
    return _positions(slices.levels, number) + OVERHEAD * whole * number


def _positions(levels: Sequence[Level], number: int) -> int:
    """Positions of the whole index space that the slices before `number` cover."""
    covered, length = 0, 1
    for depth, level in enumerate(levels):
        inner = levels[depth + 1 :]
        block, number = divmod(number, prod(one.count for one in inner))
        start, stop = level.bounds(block)
        covered += length * min(start, level.size) * prod(one.size for one in inner)
        length *= max(stop - start, 0)
    return covered


def _nearest(slices: Slices, work: float) -> int:
    """The number of slices whose work comes nearest."""
    low, high = 0, slices.count
    while low < high:
        middle = (low + high) // 2
        if work_before(slices, middle) < work:
            low = middle + 1
        else:
            high = middle
    if low and work - work_before(slices, low - 1) < work_before(slices, low) - work:
        return low - 1
    return low
