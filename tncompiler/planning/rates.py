"""How fast one library or GPU does one operation: sizes in, microseconds out."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.ir.strides import TURNED_BYTES, Turn
from tncompiler.planning.copies import Walk

# extents of the measured products; bytes of the measured passes; elements of the innermost axis of
# the measured permuting copies
EXTENTS = (1, 4, 16, 64, 256, 1024)
# those of measured products by themselves: libraries are slow at some narrow ones, and threads at
# short ones; and the most multiplications of one that is measured, and elements of its arrays
ALONE_EXTENTS = (1, 4, 8, 16, 64, 256, 1024, 8192)
ALONE_VOLUME, ALONE_SIZE = 2**26, 2**22
PASSES = (2**12, 2**16, 2**20, 2**24, 2**27)
RUNS = (2, 4, 8, 16, 64, 256, 1024)
ROWS = 16  # runs that follow one another in a measured copy
# glibc keeps freed memory of smaller results for the next call; that of larger ones is given back,
# and every page of it faults again
FRESH_BYTES = 2**25
# bytes that a measured transposing copy reads before it fetches lines again, as in `copies.py`, and
# for which share of its elements; and where that was not measured, what is taken of the rate that
# was measured over 1 MiB
SPANS = (2**14, 2**16, 2**18, 2**20, 2**22)
_SPANNED = 15 / 16
_OF_TRANSPOSES = (1.25, 1.0, 1.0, 1.0, 0.25)
# permuting copies were measured of items of ITEM bytes: larger ones make longer runs, and where
# they are fetched one by one, items of twice the bytes go at 1.6 times the rate
ITEM, _FETCHED = 4, 0.7
# rows and columns of the matrices that a measured copy turns over; what it takes to find that a
# copy does so
SIDES = (4, 16, 64, 256, 1024)
_TURN_US = 15.0
# bytes that a copy moves, up to which no library shares it out among threads
_NOT_SHARED = 2**18
# terms that a part of a split sum has at least
_SPLIT_DEPTH = 512
# for a library to take up one of the arrays that it joins
PART_US = 0.2


@dataclass(frozen=True, slots=True)
class Library:
    """What one array library reaches on a CPU.

    ``products``: by dtype, the microseconds of one (M, K) @ (K, N) in a batch, for M, N and K in
    EXTENTS, K fastest; complex ones that are not there count as four real ones. "float32 nt": the
    same where the second matrix is a transposed view, "tn" the first, "tt" both; as long as with
    matrices as they lie, if not there. ``passes``: bytes
    per microsecond, read and written added, of a contiguous pass over arrays of PASSES bytes.
    ``gathers``: the same of a permuting copy that leaves the innermost axis, of RUNS elements,
    where it is; ``transposes``: of one that brings another axis of RUNS elements innermost.
    ``spans``: of one that does so over SPANS bytes; in proportion to ``transposes``, if not there.
    ``turns``: of one that turns matrices of SIDES rows and columns over, in float32, if the library
    has an operation for that alone.
    ``block_us``: to start the two innermost loops of a copy once more than in ``gathers``.
    ``training_us``: ``call_us`` of each program of a torch module's training step, where caches
    hold other work; the same as ``call_us``, if 0.
    ``single``: as ``products``, of products by themselves, for M, N and K in ALONE_EXTENTS and
    without their start; it is read for a batch of one, and for extents beyond those of a batch. A
    dtype that is not there takes as long as in a batch.
    ``fresh``: bytes per microsecond of getting memory for a result beyond FRESH_BYTES.
    ``functions``: elements per microsecond of a transcendental function.
    ``step_us``: to start an operation; ``call_us``: to get in and out of the library for a whole
    call. ``convolutions``: of the time of one product over all taps, what the library's own
    convolution takes; 0 where it has none, and goes tap by tap. ``threads``: that the
    library had while this was measured; ``alone``: what it reaches with one, if that was more.
    """

    products: Mapping[str, tuple[float, ...]]
    passes: tuple[float, ...]
    gathers: tuple[float, ...]
    transposes: tuple[float, ...]
    fresh: float
    functions: float
    step_us: float
    call_us: float
    convolutions: float = 0.0
    threads: int = 1
    alone: Library | None = None
    spans: tuple[float, ...] = ()
    block_us: float = 0.0
    training_us: float = 0.0
    turns: tuple[float, ...] = ()
    single: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    _logs: dict[tuple[str, bool], list[list[list[float]]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for dtype in dict.fromkeys(("float32", "float64", *self.products)):
            _check(f"products of {dtype}", self.products.get(dtype), len(EXTENTS) ** 3)
        for dtype, times in self.single.items():
            _check(f"single products of {dtype}", times, len(ALONE_EXTENTS) ** 3)
        _check("passes", self.passes, len(PASSES))
        _check("gathers", self.gathers, len(RUNS))
        _check("transposes", self.transposes, len(RUNS))
        _check("spans", self.spans, len(SPANS) if self.spans else 0)
        _check("turns", self.turns, len(SIDES) if self.turns else 0)
        _check("fresh, functions and step_us", (self.fresh, self.functions, self.step_us), 3)
        may_be_none = (self.call_us, self.convolutions, self.block_us, self.training_us)
        names = "call_us, convolutions, block_us and training_us"
        _check(names, [us or 1.0 for us in may_be_none], 4)
        _check("threads", (self.threads,), 1)

    @property
    def one_thread(self) -> Library:
        """What it reaches with one thread."""
        return self.alone or self

    def product_us(self, batch: int, m: int, n: int, k: int, dtype: str, form: str = "nn") -> float:
        """Microseconds of a batch of products, without the start.

        ``form``: "n" for a matrix as it lies, "t" for a transposed view; see ``products``.
        """
        if not batch * m * n * k:
            return 0.0
        dtype, factor = (dtype, 1.0) if dtype in self.products else _measured(dtype)
        single = dtype in self.single and (batch == 1 or max(m, n, k) > EXTENTS[-1])
        times, extents = (self.single, ALONE_EXTENTS) if single else (self.products, EXTENTS)
        turned = f"{dtype} {form}"
        name = turned if turned in times else dtype
        table = self._logs.get((name, single))
        if table is None:
            table = self._logs[name, single] = _cube(times[name], len(extents))
        places = _place(m, extents), _place(n, extents), _place(k, extents)
        (i, u, over_m), (j, v, over_n), (h, w, over_k) = places
        total = 0.0
        for a, weight_a in ((i, 1 - u), (i + 1, u)):
            for b, weight_b in ((j, 1 - v), (j + 1, v)):
                weight = weight_a * weight_b
                if weight:
                    row = table[a][b]
                    total += weight * ((1 - w) * row[h] + w * row[h + 1])
        return batch * over_m * over_n * over_k * factor * math.exp(total)

    def pass_us(self, moved: float) -> float:
        """Microseconds to move so many bytes, read and written added, in order."""
        return moved / _between(PASSES, self.passes, moved) if moved else 0.0

    def gather_us(self, moved: float, run: float, item: int = ITEM) -> float:
        """Microseconds to move so many bytes in runs of so many elements."""
        if not moved:
            return 0.0
        rate = _between(RUNS, self.gathers, run * item / ITEM)
        return moved / min(rate, _between(PASSES, self.passes, moved))

    def permute_us(self, elements: float, how: Walk, item: int = ITEM) -> float:
        """Microseconds of a permuting copy of elements of so many bytes.

        A copy is no faster than a pass.
        """
        moved = 2.0 * item * elements
        if not moved:
            return 0.0
        if self.alone and moved <= _NOT_SHARED:
            return self.alone.permute_us(elements, how, item)
        time = self.block_us * max(elements / how.block - elements / (how.run * ROWS), 0.0)
        faster: float = (item / ITEM) ** _FETCHED
        rate = _between(RUNS, self.transposes, how.run)
        spans = self.spans or tuple([rate * share for share in _OF_TRANSPOSES])
        if how.kept:
            time += self.gather_us(moved, how.run, item)
        else:
            rate = rate if self.spans else spans[0]
            time += moved / min(faster * rate, _between(PASSES, self.passes, moved))
        for share, span in how.again:
            slower = 1 / _between(SPANS, spans, span) - 1 / spans[0]
            time += share / _SPANNED * moved * max(slower, 0.0) / faster
        return time

    def turn_us(self, turn: Turn) -> float:
        """Microseconds of a copy that turns matrices over, by an operation of its own; infinite
        where the library has none, or does not ask for it."""
        elements = math.prod(turn)
        if not self.turns or elements * ITEM < TURNED_BYTES:
            return math.inf
        side = math.sqrt(turn.rows * turn.columns)
        rate = _between(SIDES, self.turns, side)
        moved = 2.0 * ITEM * elements
        return _TURN_US + moved / min(rate, _between(PASSES, self.passes, moved))

    def fresh_us(self, size: float) -> float:
        """Microseconds to get memory for a result of so many bytes."""
        return size / self.fresh if size > FRESH_BYTES else 0.0

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
    training_us: float = 0.0
    tile: int = 64
    convolutions: float = 0.0  # kernels are generated tap by tap
    threads = 1

    @property
    def one_thread(self) -> Accelerator:
        """Itself."""
        return self

    def __post_init__(self) -> None:
        for dtype in ("float32", "float64"):
            _check(f"teraflops of {dtype}", (self.teraflops.get(dtype),), 1)
        _check("teraflops", tuple(self.teraflops.values()), len(self.teraflops))
        _check(
            "bytes_per_us, units, tile and step_us",
            (self.bytes_per_us, self.units, self.tile, self.step_us),
            4,
        )

    def product_us(self, batch: int, m: int, n: int, k: int, dtype: str, form: str = "nn") -> float:
        """The larger of arithmetic on whole tiles, in whole waves, and traffic; of any form.

        Where there are fewer tiles than units, long sums are split among units and added up by a
        second kernel.
        """
        if not batch * m * n * k:
            return 0.0
        dtype, factor = self._known(dtype)
        tiles = batch * math.ceil(m / self.tile) * math.ceil(n / self.tile)
        splits = max(min(self.units // tiles, k // _SPLIT_DEPTH), 1)
        waves = math.ceil(tiles * splits / self.units)
        depth = 16 * math.ceil(k / splits / 16)
        flops = 2.0 * waves * self.units * self.tile**2 * depth * factor
        moved = batch * (m * k + k * n + m * n) * _ITEMS.get(dtype, 4)
        adding = 0.0
        if splits > 1:
            adding, moved = self.step_us, moved + 2 * 4 * splits * batch * m * n
        return adding + max(flops / (self.teraflops[dtype] * 1e6), moved / self.bytes_per_us)

    def _known(self, dtype: str) -> tuple[str, float]:
        if dtype in self.teraflops:
            return dtype, 1.0
        return _measured(dtype)

    def pass_us(self, moved: float) -> float:
        return moved / self.bytes_per_us

    def gather_us(self, moved: float, run: float, item: int = ITEM) -> float:
        """Runs shorter than a 32-byte sector waste the rest of it."""
        return moved / self.bytes_per_us * max(1.0, 32 / (run * item))

    def permute_us(self, elements: float, how: Walk, item: int = ITEM) -> float:
        """As moving runs; tiles transpose on chip."""
        moved = 2.0 * item * elements
        return self.gather_us(moved, how.run, item) if how.kept else moved / self.bytes_per_us

    def turn_us(self, turn: Turn) -> float:
        """Infinite: there is no operation for it alone."""
        return math.inf

    def fresh_us(self, size: float) -> float:
        """Nothing: a caching allocator keeps memory."""
        return 0.0

    def function_us(self, elements: float) -> float:
        return 8.0 * elements / (self.teraflops["float32"] * 1e6)


Rates = Library | Accelerator


def _check(name: str, values: Sequence[Any] | None, count: int) -> None:
    """Refuse a table that is too short, or an entry that is no positive number."""
    if values is None or len(values) != count:
        found = "missing" if values is None else f"{len(values)} numbers"
        raise PlanError(
            f"a machine's {name}: {found} where there must be {count}",
            where=call_site(),
            fix="measure them with tnc.calibrate(), or take a committed table",
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _positive(value):
            raise PlanError(
                f"a machine's {name}: {value!r:.40} is no positive number",
                where=call_site(),
                fix="measure them with tnc.calibrate(), or take a committed table",
            )


def _positive(value: float) -> bool:
    return 0 < value < math.inf


_ITEMS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def _measured(dtype: str) -> tuple[str, float]:
    """The measured dtype that stands for another, and how many times its work it does."""
    if dtype in ("float64", "int64"):
        return "float64", 1.0
    if dtype == "complex64":
        return "float32", 4.0
    return ("float64", 4.0) if dtype == "complex128" else ("float32", 1.0)


def _cube(values: Sequence[float], count: int) -> list[list[list[float]]]:
    """Logarithms by M, N and K, of so many extents each."""
    rows = iter(map(math.log, values))
    return [[[next(rows) for _ in range(count)] for _ in range(count)] for _ in range(count)]


@lru_cache(maxsize=4096)
def _place(extent: int, extents: tuple[int, ...]) -> tuple[int, float, float]:
    """The measured extent below, the share of the way to the next, and how far beyond the last."""
    beyond = max(extent / extents[-1], 1.0)
    low = min(bisect_right(extents, extent) - 1, len(extents) - 2)
    share = math.log(extent / beyond / extents[low]) / math.log(extents[low + 1] / extents[low])
    return low, share, beyond


def _between(places: Sequence[int], values: Sequence[float], at: float) -> float:
    """Interpolated between logarithms; constant outside."""
    above = bisect_left(places, at)
    if above == 0:
        return values[0]
    if above == len(places):
        return values[-1]
    low, high, a, b = places[above - 1], places[above], values[above - 1], values[above]
    share = math.log(at / low) / math.log(high / low)
    return float(a ** (1 - share) * b**share)
