"""How a launch is cut into tiles: the static choice.

In: a launch. Out: block sizes (powers of two), warps, pipeline stages, and into how many parts a
long sum is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tncompiler.backends.triton.atoms import nominal
from tncompiler.backends.triton.bundle import Bundle, Way
from tncompiler.backends.triton.chain import pressure
from tncompiler.backends.triton.pairwise import Pairwise

_PROGRAMS = 128  # about as many as a large GPU has multiprocessors
_LONG = 4096  # a sum of so many terms may be split
_PARTS = 4 * _PROGRAMS  # programs that share it: several on a processor hide what each waits for
_HELD = 128  # elements that a thread can hold; half of that where products are in 32 bits
_WARPS = ((4, (2.0, 1.0)), (2, (1.0,)), (1, (1.0,)))
_MANY_WARPS = ((8, (1.0, 0.5, 0.0)),)


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
        nominal(pairwise.extent(group))
        for group in (pairwise.batch, pairwise.m, pairwise.n, pairwise.k)
    )
    if pairwise.reduction == "dot":
        return _dot_tiles(pairwise.dtype, batch, m, n, k)
    if pairwise.reduction == "map":
        return Tiles(block(m, 16, 1024), 1, 1)
    if _along_rows(pairwise):  # neighbours in memory go to neighbouring threads
        rows = block(m, 1, 128 if m * 8 > k else 32)
        while rows > 32 and -(-m // rows) < _PROGRAMS:
            rows //= 2
        columns = block(k, 1, max(1, 4096 // rows))
    else:
        columns = block(k, 16, 1024)
        rows = block(m, 1, max(1, 4096 // columns))
    programs = -(-m // rows)
    return Tiles(rows, 1, columns, splits=_splits(programs, k, columns))


def tile_candidates(pairwise: Pairwise) -> tuple[Tiles, ...]:
    """The static choice and, for products with large tiles, smaller ones: should it spill."""
    first = choose_tiles(pairwise)
    if pairwise.reduction != "dot" or first.m * first.n < 1024:
        return (first,)
    half = replace(first, **{"m" if first.m >= first.n else "n": max(first.m, first.n) // 2})
    quarter = replace(first, m=max(16, first.m // 2), n=max(16, first.n // 2))
    least = replace(first, m=min(first.m, 32), n=min(first.n, 32), k=min(first.k, 32), warps=4)
    return tuple(dict.fromkeys((first, half, quarter, least)))


def unsplit(candidates: tuple[Tiles, ...]) -> tuple[Tiles, ...]:
    """The tiles for one launch, however long its sum."""
    return tuple(dict.fromkeys(replace(tiles, splits=1) for tiles in candidates))


def _along_rows(pairwise: Pairwise) -> bool:
    """Whether the largest array is contiguous along M rather than along the reduced index."""
    largest = max(pairwise.loads, key=lambda load: len(load.strides), default=None)
    nearest = [label for label, stride in largest.strides if stride == 1] if largest else []
    return bool(nearest) and nearest[0] in pairwise.m


def way_candidates(bundle: Bundle) -> tuple[tuple[int, Tiles], ...]:
    """(which way, rows of the streamed index on chip at a time as `m`), the least cut first.

    Few warps are the faster ones: what one step leaves in a warp the next finds there. Programs of
    8 warps come last, for what fits no 4; then one of 16, for tiles so narrow that triton has no
    layout for the others.
    """
    numbered = list(enumerate(bundle.ways))
    found = [(k, tiles) for k, way in numbered for tiles in _row_candidates(way, _WARPS)]
    found += [(k, tiles) for k, way in numbered for tiles in _row_candidates(way, _MANY_WARPS)]
    if any(part.tile and part.width == 1 for part in bundle.ways[-1]):
        found.append((len(bundle.ways) - 1, Tiles(1, 1, 1, 16, 1)))
    return tuple(found)


def _row_candidates(
    way: Way, choices: Sequence[tuple[int, tuple[float, ...]]]
) -> tuple[Tiles, ...]:
    """How many rows of the streamed index are on chip at a time, the most first.

    ``choices``: warps, and parts of as many rows as leave each thread half of its registers for
    all else.
    """
    extent = block(nominal(way[0].stream.size), 1, 64)
    alive = [pressure(chain) for chain in way]
    held = _HELD if way[0].low else _HELD // 2

    def rows(warps: int, part: float) -> int:
        room = min((32 * warps * held - sums) / row for row, sums in alive)
        power = (1 << (max(1, int(room)).bit_length() - 1)) * part
        return min(extent, max(1, int(power)))

    found = [(rows(warps, part), warps) for warps, parts in choices for part in parts]
    return tuple(Tiles(number, 1, 1, warps, 1) for number, warps in dict.fromkeys(found))


def _dot_tiles(dtype: str, batch: int, m: int, n: int, k: int) -> Tiles:
    wide = dtype in ("float64", "complex64", "complex128")
    most = 32 if wide else 128
    tile_m, tile_n = block(m, 16, most), block(n, 16, most)
    parts = max(1, k // (8 * 64)) if k >= _LONG else 1  # a sum that is split keeps its tiles large
    few = _PROGRAMS / (batch * parts)
    while -(-m // tile_m) * -(-n // tile_n) < few and max(tile_m, tile_n) > 32:
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
    return min(block(part, 1, _PARTS) for part in (_PARTS // programs, terms // (8 * tile)))


def block(size: int, least: int, most: int) -> int:
    """The power of two from `least` to `most` that holds `size`."""
    held = 1 << max(size - 1, 0).bit_length()
    return min(max(held, least), most)
