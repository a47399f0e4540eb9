"""How fast one library or GPU does one operation: sizes in, microseconds out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# extents of the measured products, and bytes of the measured passes and runs of permuting copies
EXTENTS = (1, 4, 16, 64, 256, 1024)
PASSES = (2**12, 2**16, 2**20, 2**24, 2**27)
RUNS = (4, 32, 256, 2048)


@dataclass(frozen=True, slots=True)
class Library:
    """What one array library reaches on a CPU.

    ``products``: by dtype, the microseconds of one (M, K) @ (K, N) in a batch, for M ≤ N and K in
    EXTENTS, K fastest. ``passes``: bytes per microsecond, read and written added, of a contiguous
    pass over arrays of PASSES bytes. ``gathers``: the same of a permuting copy whose runs have RUNS
    bytes. ``functions``: elements per microsecond of a transcendental function. ``step_us``: to
    start an operation; ``call_us``: to get in and out of the library for a whole call.
    """

    products: Mapping[str, tuple[float, ...]]
    passes: tuple[float, ...]
    gathers: tuple[float, ...]
    functions: float
    step_us: float
    call_us: float
    _logs: dict[str, list[list[list[float]]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def product_us(self, batch: int, m: int, n: int, k: int, dtype: str) -> float:
        """Microseconds of a batch of products, without the start."""
        if not batch * m * n * k:
            return 0.0
        dtype, factor = _measured(dtype)
        table = self._logs.get(dtype)
        if table is None:
            table = self._logs[dtype] = _cube(self.products[dtype])
        beyond = 1.0
        places = []
        for extent in (m, n, k):
            if extent > EXTENTS[-1]:
                beyond *= extent / EXTENTS[-1]
                extent = EXTENTS[-1]
            position = math.log2(extent) / 2
            low = min(int(position), len(EXTENTS) - 2)
            places.append((low, position - low))
        (i, u), (j, v), (h, w) = places
        total = 0.0
        for a, weight_a in ((i, 1 - u), (i + 1, u)):
            for b, weight_b in ((j, 1 - v), (j + 1, v)):
                weight = weight_a * weight_b
                if weight:
                    row = table[a][b]
                    total += weight * ((1 - w) * row[h] + w * row[h + 1])
        return batch * beyond * factor * math.exp(total)

    def pass_us(self, moved: float) -> float:
        """Microseconds to move so many bytes, read and written added, in order."""
        return moved / _between(PASSES, self.passes, moved) if moved else 0.0

    def gather_us(self, moved: float, run: float) -> float:
        """Microseconds of a permuting copy that moves so many bytes in runs of `run` bytes."""
        rate = min(_between(RUNS, self.gathers, run), _between(PASSES, self.passes, moved))
        return moved / rate if moved else 0.0

    def function_us(self, elements: float) -> float:
        """Microseconds of a transcendental function of so many elements."""
        return elements / self.functions


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU by its published figures: a roofline with whole tiles, and a launch for each kernel.

    ``teraflops``: by dtype. ``bytes_per_us``: of its memory. ``units``: multiprocessors, each of
    which works on one tile of ``tile`` × ``tile`` results at a time. ``step_us``: a launch.
    """

    teraflops: Mapping[str, float]
    bytes_per_us: float
    units: int
    step_us: float
    call_us: float = 0.0
    tile: int = 64

    def product_us(self, batch: int, m: int, n: int, k: int, dtype: str) -> float:
        """The larger of arithmetic on whole tiles, in whole waves, and traffic."""
        if not batch * m * n * k:
            return 0.0
        dtype, factor = self._known(dtype)
        tiles = batch * math.ceil(m / self.tile) * math.ceil(n / self.tile)
        waves = math.ceil(tiles / self.units)
        depth = 16 * math.ceil(k / 16)
        flops = 2.0 * waves * self.units * self.tile**2 * depth * factor
        moved = batch * (m * k + k * n + m * n) * _ITEMS.get(dtype, 4)
        return max(flops / (self.teraflops[dtype] * 1e6), moved / self.bytes_per_us)

    def _known(self, dtype: str) -> tuple[str, float]:
        if dtype in self.teraflops:
            return dtype, 1.0
        return _measured(dtype)

    def pass_us(self, moved: float) -> float:
        return moved / self.bytes_per_us

    def gather_us(self, moved: float, run: float) -> float:
        """Runs shorter than a 32-byte sector waste the rest of it."""
        return moved / self.bytes_per_us * max(1.0, 32 / run)

    def function_us(self, elements: float) -> float:
        return 8.0 * elements / (self.teraflops["float32"] * 1e6)


Rates = Library | Accelerator
_ITEMS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def _measured(dtype: str) -> tuple[str, float]:
    """The measured dtype that stands for another, and how many times its work it does."""
    if dtype in ("float64", "int64"):
        return "float64", 1.0
    if dtype == "complex64":
        return "float32", 4.0
    return ("float64", 4.0) if dtype == "complex128" else ("float32", 1.0)


def _cube(values: Sequence[float]) -> list[list[list[float]]]:
    """Logarithms by M, N and K, from those with M ≤ N."""
    count = len(EXTENTS)
    rows = iter(values)
    table: list[list[list[float]]] = [[[] for _ in EXTENTS] for _ in EXTENTS]
    for a in range(count):
        for b in range(a, count):
            table[a][b] = table[b][a] = [math.log(next(rows)) for _ in EXTENTS]
    return table


def _between(places: Sequence[int], values: Sequence[float], at: float) -> float:
    """Interpolated between logarithms; constant outside."""
    if at <= places[0]:
        return values[0]
    for low, high, a, b in zip(places, places[1:], values, values[1:], strict=False):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return float(a ** (1 - share) * b**share)
    return values[-1]
