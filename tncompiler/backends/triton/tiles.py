"""How a launch is cut into tiles: the static choice.

In: a launch. Out: block sizes (powers of two), warps, pipeline stages, and into how many parts a
long sum is split.
"""

from __future__ import annotations

from dataclasses import dataclass

from tncompiler.backends.triton.chain import Chain, row_elements
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.ir.sizes import Size

_PROGRAMS = 128  # about as many as a large GPU has multiprocessors
_LONG = 4096  # a sum of so many terms may be split
_ON_CHIP = 2**15  # elements of the largest tile that a program of 8 warps can hold
_ON_CHIP_SUMS = 2**14  # beside the sums of a backward pass
_FREE = 1024  # stands for a free size when tiles are weighed


@dataclass(frozen=True, slots=True)
class Tiles:
    """Block sizes along M, N and K; N is 1 for all but matrix products."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    splits: int = 1


def choose_tiles(pairwise: Pairwise) -> Tiles:
    """Tiles that keep accumulators in registers and, if there is work, every processor busy."""
    batch, m, n, k = (
        _number(pairwise.extent(group))
        for group in (pairwise.batch, pairwise.m, pairwise.n, pairwise.k)
    )
    if pairwise.reduction == "dot":
        return _dot_tiles(pairwise.dtype, batch, m, n, k)
    if pairwise.reduction == "map":
        return Tiles(block(m, 16, 1024), 1, 1)
    columns = block(k, 16, 1024)
    rows = block(m, 1, max(1, 4096 // columns))
    programs = -(-m // rows)
    return Tiles(rows, 1, columns, splits=_splits(programs, k, columns))


def choose_rows(chain: Chain) -> Tiles:
    """How many rows of the streamed index are on chip at a time, as `m`."""
    sizes = [row_elements(chain, step.out.name) for step in chain.streamed]
    sizes += [row_elements(chain, v.name) for v in chain.inputs if chain.stream in chain.flat(v.name)]
    most = _ON_CHIP_SUMS if chain.sums else _ON_CHIP
    rows = block(1 + max(1, most // max(sizes)) // 2, 1, 64)
    warps = 8 if rows * max(sizes) > 4096 else 4
    return Tiles(rows, 1, 1, warps, 1)


def _dot_tiles(dtype: str, batch: int, m: int, n: int, k: int) -> Tiles:
    wide = dtype in ("float64", "complex64", "complex128")
    most = 32 if wide else 128
    tile_m, tile_n = block(m, 16, most), block(n, 16, most)
    while batch * -(-m // tile_m) * -(-n // tile_n) < _PROGRAMS and max(tile_m, tile_n) > 32:
        if tile_m >= tile_n:
            tile_m //= 2
        else:
            tile_n //= 2
    tile_k = block(k, 16, 16 if wide else 64 if max(tile_m, tile_n) <= 64 else 32)
    programs = batch * -(-m // tile_m) * -(-n // tile_n)
    warps = 8 if tile_m * tile_n >= 128 * 128 else 4
    return Tiles(tile_m, tile_n, tile_k, warps, 3, _splits(programs, k, tile_k))


def _splits(programs: int, terms: int, tile: int) -> int:
    """Parts of a sum: as many as keep the processors busy, each of several tiles."""
    if terms < _LONG or programs * 2 > _PROGRAMS:
        return 1
    return min(block(_PROGRAMS // programs, 1, 64), block(terms // (8 * tile), 1, 64))


def _number(size: Size) -> int:
    return size if isinstance(size, int) else _FREE


def block(size: int, least: int, most: int) -> int:
    """The power of two from `least` to `most` that holds `size`."""
    held = 1 << max(size - 1, 0).bit_length()
    return min(max(held, least), most)
