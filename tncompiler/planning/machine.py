"""Predicted time of a program on a CPU, from a committed table; it chooses NumPy or torch.

Rates are those of the reference machine (2 cores, float32): what NumPy (OpenBLAS) and torch (MKL)
reach on the skinny products that tensor networks are made of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from tncompiler.ir.program import Program
from tncompiler.planning.cost import is_view, step_bytes, step_elementwise, step_flops


@dataclass(frozen=True, slots=True)
class Library:
    """``flops_per_us`` in a skinny product, ``bytes_per_us`` of a pass over memory, microseconds to
    start one operation and, for the whole call, to get in and out.
    """

    flops_per_us: float
    bytes_per_us: float
    step_us: float
    call_us: float


REFERENCE: Mapping[str, Library] = {
    "numpy": Library(60_000.0, 4_000.0, 2.0, 100.0),
    "torch": Library(70_000.0, 8_000.0, 8.0, 0.0),
}


# below this a forward pass is left to torch's own autograd, whose start costs about 30 us less
TINY_US = 40.0


def predicted_us(program: Program, sizes: Mapping[sympy.Symbol, int], library: Library) -> float:
    """The larger of arithmetic and traffic for each step, plus what it costs to start."""
    total = library.call_us
    for step in program.steps:
        if is_view(step):
            continue
        read, written = step_bytes(program, step)
        traffic = (read.evaluate(sizes) + written.evaluate(sizes)) / library.bytes_per_us
        work = step_flops(program, step) + step_elementwise(step, program)
        total += max(work.evaluate(sizes) / library.flops_per_us, traffic) + library.step_us
    return total


# what entering NumPy costs when its threads and torch's both keep spinning on the same cores
POOLS_FIGHT_US = 10_000.0


def blas_threads() -> int:
    """How many threads NumPy's BLAS was told to use; all cores if it was told nothing."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit():
            return int(text)
    return os.cpu_count() or 1


def faster_backend(
    program: Program, sizes: Mapping[sympy.Symbol, int], *, training: bool, threads: int
) -> str:
    """The backend with the smaller predicted time; a training step is three times the work.

    ``threads`` is how many torch has.
    """
    work, entries = (3, 2) if training else (1, 1)
    times = {}
    for name, library in REFERENCE.items():
        entry = library.call_us
        if name == "numpy" and max(threads, blas_threads()) > 1:
            entry += POOLS_FIGHT_US
        inside = predicted_us(program, sizes, library) - library.call_us
        times[name] = work * inside + entries * entry
    return min(times, key=times.__getitem__)
