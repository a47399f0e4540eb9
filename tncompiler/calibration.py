"""Measure what this machine reaches: the table that predicted times come from.

Other programs only ever make an operation slower, so every operation is timed in several rounds
over all of them, and its least time counts. A product that took longer than a larger one is
measured again as often: a disturbance is gone then, and what a library is slow at stays.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import threadpoolctl
from tqdm import tqdm

from tncompiler.backends.numpy.products import product
from tncompiler.backends.numpy.threads import blas_threads
from tncompiler.ir.algebra import contract
from tncompiler.ir.errors import PlanError
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.planning.machine import Machine, set_default_machine
from tncompiler.planning.rates import (
    ALONE_EXTENTS,
    ALONE_SIZE,
    ALONE_VOLUME,
    EXTENTS,
    PASSES,
    ROWS,
    RUNS,
    SIDES,
    SPANS,
    Library,
)

ROUNDS = 5
_LEAST_S = 2e-4  # of one sample; shorter operations are repeated
_WORKING_SET = 2**19  # bytes of the operands of a measured batch of products
_MOST_BATCH, _LEAST_BATCH = 256, 16  # of more than one: threads must have equal shares
_COPIED = 2**18  # elements of a measured permuting copy
_SPANNED = 2**20  # the same of those over spans
_ROW = 64  # of their rows
_BLOCKS = (-1, 4, 4, 4, 8)  # the shape of an array copied with its middle axes turned round
_MAPPED = 2**16  # elements of a measured map
_FRESH = 2**26  # bytes of a measured result in new memory
_STEPS = 51  # whose median is taken
_QUIET_S = 0.05  # after which threads that looked for work have gone to sleep
_POOL = 2**25  # elements that copied arrays are cut out of
_LONGER = 1.1  # times as long as a larger product takes, from which on one is measured again
# entering NumPy from a torch module and coming back, which is torch's own, without gradients
CALL_US = {"numpy": 35.0, "torch": 40.0}
# oneDNN's convolutions on the reference machine: 0.4 to 0.6 of a product as torch calls it
CONVOLUTIONS = {"numpy": 0.0, "torch": 0.5}
# float32 flops per microsecond of the best product: outside, the clock or the library is broken
_PLAUSIBLE = (1e2, 1e9)

# dtypes, and the forms in which a matrix is a transposed view
_TURNED = (f"{dtype} {form}" for dtype in ("float32", "complex64") for form in ("nt", "tn", "tt"))
PRODUCTS = ("float32", "float64", "complex64", *_TURNED)
# those that are measured by themselves, too
SINGLE = ("float32", "float64", "float32 nt", "float32 tn", "float32 tt")

Run = Callable[[], object]
Multiply = Callable[[Any, Any, Any], Any]
Clock = Callable[[], float]
Shape = tuple[int, int, int]
Times = dict[Any, float]
_EXTENTS = {"product": EXTENTS, "single": ALONE_EXTENTS}

SHAPES: tuple[Shape, ...] = tuple(itertools.product(EXTENTS, EXTENTS, EXTENTS))
ALONE: tuple[Shape, ...] = tuple(itertools.product(ALONE_EXTENTS, ALONE_EXTENTS, ALONE_EXTENTS))


def calibrate(
    *, default: bool = True, progress: bool = True, clock: Clock = time.perf_counter
) -> Machine:
    """Measure this machine's NumPy and torch, with the threads they have now; a minute.

    Where that is more than one, with one as well: blocks of programs have as many.
    The result becomes what plans are made for in this process, unless ``default`` is false; keep
    it with `Machine.to_json` and give it as ``PlanOptions(machine=…)``. Close other programs first.
    ``clock``: seconds; the processor's counts less of what other programs do.
    Raises: PlanError if what it finds cannot be.
    """
    libraries = {name: _measured(name, progress=progress, clock=clock) for name in CALL_US}
    machine = Machine(
        f"calibrated on {platform.node() or 'this machine'}", libraries, "tnc.calibrate()"
    )
    if default:
        set_default_machine(machine)
    return machine


def _measured(name: str, *, progress: bool, clock: Clock) -> Library:
    """A library's table with the threads it has, in which that with one thread is, if it has more.

    All of one are measured before the other: what just had threads keeps cores busy for a while.
    """
    library = _LIBRARIES[name]()

    def table() -> Library:
        found = measure_times(name, progress=progress, clock=clock)
        return replace(library_of(found, CALL_US[name]), convolutions=CONVOLUTIONS[name])

    threads = library.threads()
    if threads == 1:
        return replace(table(), training_us=_training_us(name, clock))
    with library.one_thread():
        time.sleep(_QUIET_S)
        alone = table()
    found, training_us = table(), _training_us(name, clock)
    alone = replace(alone, training_us=training_us)
    return replace(found, threads=threads, alone=alone, training_us=training_us)


def _training_us(backend: str, clock: Clock) -> float:
    """Microseconds to get in and out of each of the two programs of a training step, where a large
    product has just used the caches."""
    import torch

    from tncompiler import api, dsl

    i, j, k = (Index(name, 2) for name in "ijk")
    product = contract(dsl.input("x", i, j), dsl.param("w", j, k), out=(i, k))
    module = api.compile(product, backend=backend)
    x, cotangent = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2)
    large = torch.zeros(1024, 1024)
    times = []
    for _ in range(_STEPS):
        large @ large
        start = clock()
        module(x).backward(cotangent)
        times.append(clock() - start)
    return _round(statistics.median(times) * 1e6 / 2)


def measure_times(
    name: str,
    rounds: int = ROUNDS,
    *,
    progress: bool = True,
    clock: Clock = time.perf_counter,
) -> Times:
    """The least microseconds of each operation of a library, in so many rounds over all, and as
    many more over products in doubt."""
    probes = dict(_probes(_LIBRARIES[name]()))
    with tqdm(total=2 * rounds, desc=f"measuring {name}", disable=not progress, leave=False) as bar:
        for number in range(2 * rounds):
            again = probes if number < rounds else _doubtful(probes)
            for probe in again.values():
                probe.sample(clock)
            bar.update()
    return {key: probe.best_us for key, probe in probes.items()}


def library_of(times: Times, call_us: float) -> Library:
    """The table of a library from the microseconds of its operations. Raises: PlanError."""
    products = {name: [times["product", name, shape] for shape in SHAPES] for name in PRODUCTS}
    _check_plausible(products["float32"])
    passes = [2 * size / times["pass", size] for size in PASSES]
    fresh_us = max(times["fresh"] - 2 * _FRESH / passes[-1], times["fresh"] / 100)
    return Library(
        products={name: _rounded(found) for name, found in products.items()},
        single={name: _rounded(_singles(times, name)) for name in SINGLE},
        passes=_rounded(passes),
        gathers=_rounded(8 * _COPIED / times["gather", run] for run in RUNS),
        transposes=_rounded(8 * _COPIED / times["transpose", run] for run in RUNS),
        spans=_rounded(8 * _SPANNED / times["span", span] for span in SPANS),
        turns=_rounded(
            8 * _SPANNED / times["turn", side] for side in SIDES if ("turn", side) in times
        ),
        block_us=_round(_block_us(times)),
        fresh=_round(_FRESH / fresh_us),
        functions=_round(_MAPPED / times["function"]),
        step_us=_round(times["step"]),
        call_us=call_us,
    )


def _block_us(times: Times) -> float:
    """What the copy of blocks takes longer than one in the same runs, for each more of them."""
    rows, run = _BLOCKS[-2:]
    more = _COPIED / (rows * run) - _COPIED / (ROWS * run)
    return max(times["blocks"] - times["gather", run], 0.0) / more


def _doubtful(probes: dict[Any, _Probe]) -> dict[Any, _Probe]:
    """Those of products that took longer than one with a larger extent."""
    found = {}
    for key, probe in probes.items():
        if key[0] in _EXTENTS:
            larger = [(*key[:2], shape) for shape in _next_larger(key[2], _EXTENTS[key[0]])]
            least = min((probes[k].best_us for k in larger if k in probes), default=math.inf)
            if probe.best_us > _LONGER * least:
                found[key] = probe
    return found


def _singles(times: Times, name: str) -> Iterator[float]:
    """Microseconds of products by themselves, without their start; of one that is too large to be
    measured in proportion to the largest that is not."""
    itemsize = np.dtype(name.partition(" ")[0]).itemsize
    start = times["single", name, ALONE[0]]  # of one number by one: all of it, and no views
    for shape in ALONE:
        found, factor = shape, 1.0
        while not _is_small(*found) and not _is_no_batch(found, itemsize):
            largest = max(found)
            less = ALONE_EXTENTS[ALONE_EXTENTS.index(largest) - 1]
            m, n, k = found
            if m == largest:
                found = less, n, k
            else:
                found = (m, less, k) if n == largest else (m, n, less)
            factor *= largest / less
        us = times["product" if _is_no_batch(found, itemsize) else "single", name, found]
        yield factor * max(us - start, us / 4)


def _is_small(m: int, n: int, k: int) -> bool:
    """Whether products of this shape are measured by themselves."""
    return m * n * k <= ALONE_VOLUME and max(m * k, k * n, m * n) <= ALONE_SIZE


def _is_no_batch(shape: Shape, itemsize: int) -> bool:
    """Whether products of this shape were measured by themselves as those of a batch are."""
    return set(shape) <= {*EXTENTS} and _batch(shape, itemsize) == 1


def _batch(shape: Shape, itemsize: int) -> int:
    """How many products of this shape are measured at a time: they stay in cache."""
    m, n, k = shape
    batch = min(_MOST_BATCH, _WORKING_SET // ((m * k + k * n + m * n) * itemsize))
    return 1 if batch < 2 else max(batch, _LEAST_BATCH)


def _next_larger(shape: Shape, extents: Sequence[int]) -> Iterator[Shape]:
    """The measured shapes with one extent larger."""
    following = dict(itertools.pairwise(extents))
    m, n, k = shape
    if m in following:
        yield following[m], n, k
    if n in following:
        yield m, following[n], k
    if k in following:
        yield m, n, following[k]


def _check_plausible(products: Sequence[float]) -> None:
    """Raise if no product is as fast as any processor's, or one is faster than all."""
    best = max(2.0 * math.prod(s) / us for s, us in zip(SHAPES, products, strict=True))
    if not _PLAUSIBLE[0] < best < _PLAUSIBLE[1]:
        raise PlanError(
            f"the fastest product was measured at {best:.3g} flops per microsecond",
            where=call_site(),
            fix="calibrate again while nothing else runs",
        )


# ---------------------------------------------------------------------------- what is run


@dataclass
class _Probe:
    """One operation: ``units`` of them in a run, the least time of one so far."""

    run: Run
    units: int = 1
    calls: int = 0
    best_us: float = math.inf

    def sample(self, clock: Clock) -> None:
        if not self.calls:
            self._warm_up(clock)
        seconds = _seconds(self.run, self.calls, clock) / self.calls
        self.best_us = min(self.best_us, seconds * 1e6 / self.units)

    def _warm_up(self, clock: Clock) -> None:
        """Find how many calls make a sample; the first is not counted."""
        self.run()
        once = _seconds(self.run, 1, clock)
        self.calls = max(1, math.ceil(_LEAST_S / max(once, 1e-7)))


def _seconds(run: Run, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return clock() - start


def _probes(library: Any) -> Iterator[tuple[Any, _Probe]]:
    """Every operation that a table is made of, by what it is."""
    pools: dict[str, Any] = {}
    for kind, names in (("product", PRODUCTS), ("single", SINGLE)):
        for name in names:
            dtype, _, form = name.partition(" ")
            pool = pools.get(dtype)
            if pool is None:
                pool = pools[dtype] = library.pool(dtype, 3 * ALONE_SIZE)
            for shape, batch in _measured_products(kind, np.dtype(dtype).itemsize):
                yield (kind, name, shape), _product(library.multiply(), pool, batch, shape, form)
    pool = library.pool("float32", _POOL)
    for size in PASSES:
        yield ("pass", size), _Probe(library.copied(pool[: size // 4], (0,)))
    for run in RUNS:
        blocks = pool[:_COPIED].reshape(ROWS, _COPIED // ROWS // run, run)
        yield ("gather", run), _Probe(library.copied(blocks, (1, 0, 2)))
        rows = pool[:_COPIED].reshape(_COPIED // ROWS // run, run, ROWS)
        yield ("transpose", run), _Probe(library.copied(rows, (0, 2, 1)))
    for span in SPANS:
        rows = pool[:_SPANNED].reshape(-1, span // 4 // _ROW, _ROW)
        yield ("span", span), _Probe(library.copied(rows, (0, 2, 1)))
    for side in SIDES if library.turns else ():
        matrices = pool.reshape(-1, _SPANNED // side**2, side, side)  # one after the other
        yield ("turn", side), _Probe(library.turned(matrices))
    yield "blocks", _Probe(library.copied(pool[:_COPIED].reshape(_BLOCKS), (0, 3, 2, 1, 4)))
    yield "fresh", _Probe(library.cloned(pool[: _FRESH // 4]))
    yield "function", _Probe(library.exponential(pool[:_MAPPED]))
    small, square = pool[:16].reshape(2, 2, 4), pool[:16].reshape(4, 4)
    yield "step", _Probe(lambda: (small.reshape(4, 4) @ square).reshape(2, 2, 4))


def _measured_products(kind: str, itemsize: int) -> Iterator[tuple[Shape, int]]:
    """The shapes that are measured, and how many of each at a time."""
    for shape in SHAPES if kind == "product" else ALONE:
        if kind == "product":
            yield shape, _batch(shape, itemsize)
        elif _is_small(*shape) and not _is_no_batch(shape, itemsize):
            yield shape, 1


def _product(multiply: Multiply, pool: Any, batch: int, shape: Shape, form: str) -> _Probe:
    """So many products, of matrices as they lie or of transposed views, into memory that is there.

    A batch stays in cache.
    """
    m, n, k = shape
    results = pool[2 * ALONE_SIZE :]
    a, b = pool[: batch * m * k], pool[batch * m * k : batch * (m + n) * k]
    a = a.reshape(batch, k, m).swapaxes(1, 2) if form[:1] == "t" else a.reshape(batch, m, k)
    b = b.reshape(batch, n, k).swapaxes(1, 2) if form[1:] == "t" else b.reshape(batch, k, n)
    out = results[: batch * m * n].reshape(batch, m, n)
    if batch == 1:
        a, b, out = a[0], b[0], out[0]
    return _Probe(lambda: multiply(a, b, out), batch)


class _Numpy:
    turns = False  # it has no operation for matrices that are turned over

    def threads(self) -> int:
        return blas_threads()

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            yield

    def multiply(self) -> Multiply:
        return partial(product, alone=blas_threads() == 1)

    def pool(self, dtype: str, count: int) -> Any:
        return np.linspace(-1.0, 1.0, count, dtype=dtype)

    def copied(self, array: Any, axes: Sequence[int]) -> Run:
        view = array.transpose(axes)
        out = np.empty(view.shape, view.dtype)
        return lambda: np.copyto(out, view)

    def cloned(self, array: Any) -> Run:
        return lambda: array.copy()

    def exponential(self, array: Any) -> Run:
        return lambda: np.exp(array)


class _Torch:
    turns = True

    def threads(self) -> int:
        import torch

        return torch.get_num_threads()

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def multiply(self) -> Multiply:
        import torch

        return lambda a, b, out: torch.matmul(a, b, out=out)

    def pool(self, dtype: str, count: int) -> Any:
        import torch

        return torch.linspace(-1.0, 1.0, count, dtype=getattr(torch, dtype))

    def copied(self, array: Any, axes: Sequence[int]) -> Run:
        import torch

        view = array.permute(axes)
        out = torch.empty(view.shape, dtype=view.dtype)
        return lambda: out.copy_(view)

    def turned(self, matrices: Any) -> Run:
        from tncompiler.backends.torch.memory import copied

        views = itertools.cycle([each.transpose(1, 2) for each in matrices])
        return lambda: copied(next(views))

    def cloned(self, array: Any) -> Run:
        return lambda: array.clone()

    def exponential(self, array: Any) -> Run:
        return lambda: array.exp()


_LIBRARIES: dict[str, Callable[[], Any]] = {"numpy": _Numpy, "torch": _Torch}


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(_round, values))


def _round(value: float) -> float:
    return float(f"{value:.3g}")
