"""Measure what this machine reaches: the table that predicted times come from."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from tncompiler.planning.machine import Machine, set_default_machine
from tncompiler.planning.rates import EXTENTS, PASSES, RUNS, Library

_LEAST_S = 3e-4  # of one sample; shorter operations are repeated
_SAMPLES = 3
_WORKING_SET = 2**19  # bytes of the operands of a measured batch of products
_MOST_BATCH = 256
_GATHERED = 2**22  # bytes of a measured permuting copy
# entering NumPy from a torch module and coming back, which is torch's own and measured apart
_CALL_US = {"numpy": 100.0, "torch": 0.0}

Run = Callable[[], object]


def calibrate(*, default: bool = True, progress: bool = True) -> Machine:
    """Measure this machine's NumPy and torch, with the threads they have now; some seconds.

    The result becomes what plans are made for in this process, unless ``default`` is false; keep
    it with `Machine.to_json` and give it as ``PlanOptions(machine=…)``. Close other programs first.
    """
    machine = Machine(
        f"calibrated on {platform.node() or 'this machine'}",
        {name: _measure(name, made(), progress) for name, made in _LIBRARIES.items()},
    )
    if default:
        set_default_machine(machine)
    return machine


class _Numpy:
    def random(self, shape: tuple[int, ...], dtype: str) -> Any:
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)

    def copied(self, array: Any, axes: tuple[int, ...]) -> Run:
        view = array.transpose(axes)
        out = np.empty(view.shape, view.dtype)
        return lambda: np.copyto(out, view)

    def exponential(self, array: Any) -> Run:
        return lambda: np.exp(array)


class _Torch:
    def random(self, shape: tuple[int, ...], dtype: str) -> Any:
        import torch

        return torch.from_numpy(_Numpy().random(shape, dtype))

    def copied(self, array: Any, axes: tuple[int, ...]) -> Run:
        import torch

        view = array.permute(axes)
        out = torch.empty(view.shape, dtype=view.dtype)
        return lambda: out.copy_(view)

    def exponential(self, array: Any) -> Run:
        return lambda: array.exp()


_LIBRARIES: dict[str, Callable[[], Any]] = {"numpy": _Numpy, "torch": _Torch}


def _measure(name: str, library: Any, progress: bool) -> Library:
    shapes = [(m, n, k) for i, m in enumerate(EXTENTS) for n in EXTENTS[i:] for k in EXTENTS]
    bar = tqdm(total=2 * len(shapes), desc=f"products of {name}", disable=not progress, leave=False)
    products: dict[str, tuple[float, ...]] = {}
    with bar:
        for dtype in ("float32", "float64"):
            found = []
            for shape in shapes:
                found.append(_product_us(library, shape, dtype))
                bar.update()
            products[dtype] = tuple(found)
    passes = []
    for size in PASSES:
        array = library.random((size // 4,), "float32")
        passes.append(2 * size / _least_us(library.copied(array, (0,))))
    gathers = []
    for run in RUNS:
        side = int((_GATHERED / run) ** 0.5)
        array = library.random((side, side, run // 4), "float32")
        gathers.append(2 * side * side * run / _least_us(library.copied(array, (1, 0, 2))))
    array = library.random((2**18,), "float32")
    functions = 2**18 / _least_us(library.exponential(array))
    small, product = library.random((2, 2, 4), "float32"), library.random((4, 4), "float32")
    step = _least_us(lambda: (small.reshape(4, 4) @ product).reshape(2, 2, 4))
    return Library(
        {dtype: _rounded(found) for dtype, found in products.items()},
        _rounded(passes),
        _rounded(gathers),
        _rounded([functions])[0],
        _rounded([step])[0],
        _CALL_US[name],
    )


def _product_us(library: Any, shape: tuple[int, int, int], dtype: str) -> float:
    """Microseconds of one product among a batch that stays in cache."""
    m, n, k = shape
    size = (m * k + k * n + m * n) * np.dtype(dtype).itemsize
    batch = max(1, min(_MOST_BATCH, _WORKING_SET // size))
    a, b = library.random((batch, m, k), dtype), library.random((batch, k, n), dtype)
    if batch == 1:
        a, b = a[0], b[0]
    return _least_us(lambda: a @ b) / batch


def _least_us(run: Run) -> float:
    run()
    calls = 1
    while (seconds := _seconds(run, calls)) < _LEAST_S:
        calls = max(2 * calls, int(calls * _LEAST_S / max(seconds, 1e-9)))
    return min(seconds, *(_seconds(run, calls) for _ in range(_SAMPLES - 1))) / calls * 1e6


def _seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values)
