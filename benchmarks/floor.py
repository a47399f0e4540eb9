"""What no contestant can beat on this machine: the time of the fewest flops, or of the bytes.

floor = max(flops / matrix rate, bytes / copy bandwidth), both rates measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.problems import Problem
from benchmarks.reference import least_flops

MATRIX = 2048  # rows and columns of the product
COPIED_BYTES = 2**28
TIMES = 5


@dataclass(frozen=True, slots=True)
class Rates:
    """``flops_per_s`` by dtype: the best that NumPy or torch attains on a 2048³ product.

    ``bytes_per_s``: of a large np.copyto, what is read and what is written added up.
    """

    flops_per_s: dict[str, float]
    bytes_per_s: float

    def best(self, other: Rates) -> Rates:
        """The larger of two measurements of the same machine."""
        flops = {k: max(v, other.flops_per_s[k]) for k, v in self.flops_per_s.items()}
        return Rates(flops, max(self.bytes_per_s, other.bytes_per_s))


@dataclass(frozen=True, slots=True)
class Floor:
    """``flops`` of the best tree for the part, ``bytes`` moved once each, and the time of both."""

    flops: int
    bytes: int
    time_ms: float


def floor_of(problem: Problem, rates: Rates) -> Floor:
    """The floor of a cell."""
    flops = least_flops(problem)
    moved = problem.numbers_moved * np.dtype(problem.cell.dtype).itemsize
    seconds = max(flops / rates.flops_per_s[problem.cell.dtype], moved / rates.bytes_per_s)
    return Floor(flops, moved, seconds * 1e3)


def measure_rates(dtypes: tuple[str, ...], size: int = MATRIX, copied: int = COPIED_BYTES) -> Rates:
    """The rates of this machine, with the threads that are set. Takes seconds."""
    flops = {dtype: _matrix_rate(dtype, size) for dtype in tqdm(dtypes, desc="rates", leave=False)}
    source = np.ones(copied, np.uint8)
    target = np.empty_like(source)
    return Rates(flops, 2 * copied / _least_seconds(lambda: np.copyto(target, source)))


def _matrix_rate(dtype: str, size: int) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(dtype) for _ in range(2))
    out, ta, tb = np.empty_like(a), torch.from_numpy(a), torch.from_numpy(b)
    t_out = torch.empty_like(ta)
    runs: list[Callable[[], object]] = [
        lambda: np.matmul(a, b, out=out),
        lambda: torch.matmul(ta, tb, out=t_out),
    ]
    return 2 * size**3 / min(map(_least_seconds, runs))


def _least_seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
