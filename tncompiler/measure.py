"""Scale drawn parameters by what networks really give on example inputs.

Second moments say how large the values of a network are on average over draws. In a long product
that average comes from rare draws: almost all others are smaller, after 784 sites by 10 orders of
magnitude. So each network is run once, and its parameters share what is missing to size 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from tncompiler.binding import read_call
from tncompiler.compiler import Compilation
from tncompiler.ir.dtypes import DEFAULT, kind
from tncompiler.ir.passes import SCHEDULED_PASSES, run_passes
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Networks, Program, Step
from tncompiler.planning.schedule import schedule

# E log|z| of a normal number z of variance 1: real, and complex
_LOG_TYPICAL = {"float": -0.6351814227, "complex": -0.2886078325}


def fitting_factors(
    compilation: Compilation, arrays: Mapping[str, np.ndarray], drawn: Collection[str]
) -> dict[str, float]:
    """What to multiply parameters with, so that the values of every network are of size 1.

    ``arrays``: all leaves by name, the inputs being examples; ``drawn``: the parameters that may be
    scaled. A network's values are of size 1 if their geometric mean is that of normal numbers of
    variance 1. Networks whose values are zero or not finite are left as they are.
    Cost: every network with such parameters is planned and run once, in float64.
    """
    held = {leaf.name: _wide(arrays[leaf.name], leaf.dtype) for leaf in compilation.ordered}
    call = read_call(compilation, [held[leaf.name] for leaf in compilation.ordered], "float64")
    logical = compilation.logical(call.dtypes)
    factors: dict[str, float] = {}
    for step, names in _networks(logical, frozenset(drawn)):
        program = drop_dead_steps(replace(logical, outputs=(step.out.name,)))
        planned, _ = schedule(program, call.free, compilation.options)
        planned = run_passes(planned, SCHEDULED_PASSES, scheduled=True)
        run = compilation.executable(planned, "numpy", "forward").run
        (value,) = run(*(held[leaf.name] for leaf in compilation.ordered))
        missing = _LOG_TYPICAL.get(kind(step.out.dtype), 0.0) - _log_size(value)
        if math.isfinite(missing):
            for name in dict.fromkeys(names):
                factors[name] = math.exp(missing / len(names))
                held[name] = held[name] * factors[name]
    return factors


def _wide(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array of a leaf; in double precision if its dtype is the compilation's to choose."""
    if dtype != DEFAULT:
        return array
    return array.astype("complex128" if np.iscomplexobj(array) else "float64")


def _networks(program: Program, drawn: frozenset[str]) -> Iterator[tuple[Step, list[str]]]:
    """Every network with parameters that no earlier one has, and those, one for each use."""
    seen: set[str] = set()
    for step in program.steps:
        if isinstance(step.op, Networks):
            names = [name for name in step.operands if name in drawn and name not in seen]
            seen.update(names)
            if names:
                yield step, names


def _log_size(value: np.ndarray) -> float:
    """The logarithm of the geometric mean of the numbers that are neither zero nor infinite."""
    sizes = np.abs(value)
    usable = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.mean(np.log(usable))) if usable.size else math.nan
