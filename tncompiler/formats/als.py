"""Alternating least squares for any network that is linear in each of its parameters.

In: an expression of parameters and a weight. For each core the rest of the network, its environment
E, is an expression; the Gram matrix E^H E and the right-hand side E^H W are contractions that are
compiled once (least_squares) and called in every sweep. The error never grows from one sweep to the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from tncompiler.api import compile as compile_network
from tncompiler.formats.evaluate import bare
from tncompiler.formats.least_squares import Cores, Update, update_of
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr, Leaf

# What pulls to the core as it was, relative to the mean diagonal of a Gram matrix: much at first,
# against swamps, as in Navasca, De Lathauwer & Kindermann 2008; then next to nothing.
_FIRST_RIDGE, _LAST_RIDGE, _DECAY = 1e-3, 1e-12, 0.8
_EXACT = 1e-14  # relative error at which there is nothing left to gain


@dataclass(frozen=True, slots=True)
class Effort:
    """When sweeps end: after `sweeps`, or when `patience` in a row gain less than `gain` each.

    ``gain`` is relative to the error. ``operations`` bounds all sweeps together, but for the
    first ten.
    """

    sweeps: int = 300
    gain: float = 1e-5
    patience: int = 5
    operations: float = 2e10


def als(
    network: Expr, weight: np.ndarray, starts: Iterable[Cores], effort: Effort | None = None
) -> tuple[Cores, float]:
    """The best cores that alternating least squares finds from some starts, and their error.

    Shapes: weight has one axis for each index of the network, in that order; each start holds one
    array for each parameter. The error is the norm of the difference, not relative.
    Cost:   for each start and sweep, two contractions with the weight for each core.
    Raises: FormatError if a parameter occurs more than once or not as a factor.
    Source: Kolda & Bader 2009, doi:10.1137/07070111X, section 3.4; extrapolation between sweeps as
            in Rajih, Comon & Harshman 2008, doi:10.1137/06065577X, with a fixed step.
    """
    sweep = _sweep(bare(network), weight.dtype.name)
    floor = _EXACT * float(np.linalg.norm(weight))
    best: tuple[Cores, float] | None = None
    for start in starts:
        found = _descend(sweep, weight, start, effort or Effort(), floor)
        if best is None or found[1] < best[1]:
            best = found
        if best[1] <= floor:
            break
    if best is None:
        raise FormatError("no start is given", fix="give one dict of cores or more")
    return best


def random_cores(
    network: Expr, weight: np.ndarray, rng: np.random.Generator, count: int = 1
) -> list[Cores]:
    """Normal cores, scaled so that the network has about the norm of the weight."""
    params = [leaf for leaf in network.leaves if leaf.kind == "param"]
    stds = float(np.sqrt(np.mean(np.abs(weight) ** 2)))
    summed = {i for leaf in params for i in leaf.indices} - set(network.indices)
    terms = prod(int(index.size) for index in summed)
    scale = (stds / terms**0.5) ** (1 / max(len(params), 1))
    return [{p.name: scale * _normal(p, weight.dtype, rng) for p in params} for _ in range(count)]


def _normal(leaf: Leaf, dtype: np.dtype[Any], rng: np.random.Generator) -> np.ndarray:
    shape = [int(size) for size in leaf.shape]
    values: np.ndarray = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = (values + 1j * rng.standard_normal(shape)) / 2**0.5
    return values


# ---------------------------------------------------------------------------- one descent


def _descend(
    sweep: _Sweep, weight: np.ndarray, start: Cores, effort: Effort, floor: float
) -> tuple[Cores, float]:
    """Sweeps until nothing is gained; in between, a step further in the direction of the last."""
    cores, error, idle = start, sweep.error(weight, start), 0
    affordable = int(effort.operations / sweep.operations(weight, start))
    for count in range(min(effort.sweeps, max(affordable, 10))):
        if error <= floor or idle >= effort.patience:
            break
        before, old = cores, error
        cores = sweep.run(weight, cores, max(_FIRST_RIDGE * _DECAY**count, _LAST_RIDGE))
        error = sweep.error(weight, cores)
        further = _beyond(before, cores, (count + 1) ** (1 / 3))
        ahead = sweep.error(weight, further)
        if ahead < error:
            cores, error = further, ahead
        if error > old:  # rounding: the best was reached
            return before, old
        idle = idle + 1 if old - error <= effort.gain * old else 0
    return cores, error


def _beyond(before: Cores, now: Cores, step: float) -> Cores:
    return {name: now[name] + step * (now[name] - before[name]) for name in now}


@dataclass(frozen=True)
class _Sweep:
    """All updates of a network, and the network itself, compiled."""

    updates: tuple[Update, ...]
    value: Callable[..., Any]

    def run(self, weight: np.ndarray, cores: Cores, ridge: float) -> Cores:
        cores = dict(cores)
        for update in self.updates:
            if update.whole:
                cores[update.name] = update.solve(weight, cores, ridge)
            else:
                cores[update.name] = update.iterate(weight, cores, self.value)
        return cores

    def operations(self, weight: np.ndarray, cores: Cores) -> float:
        """About what one sweep costs."""
        shapes = {name: core.shape for name, core in cores.items()}
        return float(
            sum(update.operations(weight.size, shapes[update.name]) for update in self.updates)
        )

    def error(self, weight: np.ndarray, cores: Mapping[str, np.ndarray]) -> float:
        return float(np.linalg.norm(weight - self.value(parameters=dict(cores))))


# ---------------------------------------------------------------------------- compiling


@lru_cache(maxsize=16)
def _sweep(network: Expr, dtype: str) -> _Sweep:
    params = [leaf for leaf in network.leaves if leaf.kind == "param"]
    value = compile_network(network, framework="numpy", backend="numpy", dtype=dtype, seed=0)
    return _Sweep(tuple(update_of(network, leaf, dtype) for leaf in params), value)
