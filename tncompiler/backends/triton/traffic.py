"""Bytes that a launch moves, counted from its loads and stores.

In: an action of a plan of launches, sizes, block sizes, programs. Out: bytes of the arrays it
touches, each counted once (what device memory must give and take), and bytes that its programs ask
the L2 cache for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tncompiler.backends.triton.bundle import Bundle, Way
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.backends.triton.trees import Strides, loads
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Labels, Value
from tncompiler.ir.sizes import Binding, evaluate


@dataclass(frozen=True, slots=True)
class Traffic:
    """``unique``: bytes of the arrays; ``cached``: bytes asked of L2, each time they are asked."""

    unique: int
    cached: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.unique + other.unique, self.cached + other.cached)


def nbytes(value: Value, sizes: Binding) -> int:
    """Bytes of a dense array."""
    return ITEM_BYTES[value.dtype] * math.prod(evaluate(size, sizes) for size in value.shape)


def bundle_traffic(
    bundle: Bundle, way: Way, sizes: Binding, programs: int, turns: int = 1
) -> Traffic:
    """Every program of a branch reads all of its cores and writes its own sums. A branch that sums
    reads rows and cores for each of its tiles; another reads tiles of cores for each of its
    ``turns``, the times that a program takes rows.
    """
    sums = programs * sum(_sum_bytes(value, sizes) for value in bundle.sums)
    unique = sum(nbytes(v, sizes) for v in (*bundle.inputs, *bundle.outputs)) + sums
    cached = sums
    for part in way:
        tiles = int(part.tile.size) // part.width if part.tile else 1
        for value in part.inputs:
            tiled = part.tile is not None and part.tile in part.flat(value.name)
            times = tiles if part.sums and not tiled else 1
            if part.stream not in part.flat(value.name):
                times *= programs * (turns if tiled and not part.sums else 1)
            cached += times * nbytes(value, sizes)
        cached += sum(nbytes(value, sizes) for value in part.outputs)
    return Traffic(unique, cached)


def _sum_bytes(value: Value, sizes: Binding) -> int:
    """Bytes of a sum in a program's part."""
    width = 8 if value.dtype == "float64" else 4
    return width * math.prod(evaluate(size, sizes) for size in value.shape)


def pairwise_traffic(pairwise: Pairwise, sizes: Binding, blocks: Mapping[str, int]) -> Traffic:
    """A load is repeated for each tile along the axes that it does not have."""
    p = pairwise
    cached = unique = 0
    axes = {"m": "BLOCK_M", "k": "BLOCK_K", "n": "BLOCK_N"}
    tiles = {
        name: -(-_extent(p, getattr(p, name), sizes) // blocks.get(block, 1))
        for name, block in axes.items()
    }
    reduced = loads(p.left, p.right)
    for load in p.loads:
        over = ("m", "n", "k") if load in reduced else ("m", "n")
        size = ITEM_BYTES[load.dtype]
        cached += size * _reads(p, load.strides, over, tiles, sizes)
        unique += nbytes(load.value, sizes)
    written = nbytes(p.out, sizes)
    return Traffic(unique + written, cached + written)


def _reads(
    p: Pairwise, strides: Strides, over: tuple[str, ...], tiles: Mapping[str, int], sizes: Binding
) -> int:
    """Elements that a load asks for in all tiles together."""
    labels = {label for label, _ in strides}
    count = _extent(p, p.batch, sizes)
    for name in over:
        group: Labels = getattr(p, name)
        count *= _extent(p, group, sizes) if labels & set(group) else tiles[name]
    return count


def _extent(p: Pairwise, group: Labels, sizes: Binding) -> int:
    return math.prod(evaluate(p.sizes[label], sizes) for label in group)
