"""Fitting a network that is not linear in its parameters, by gradients that we compile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.optimize

from tncompiler.api import compile as compile_network
from tncompiler.formats.evaluate import bare
from tncompiler.formats.least_squares import Cores
from tncompiler.ir import algebra
from tncompiler.ir.expressions import Expr
from tncompiler.ir.program import fresh_name

_STEPS = 2000


def descend(network: Expr, weight: np.ndarray, starts: Iterable[Cores]) -> tuple[Cores, float]:
    """The best cores that L-BFGS finds from some starts, and the norm of the error.

    Shapes: weight has one axis for each index of the network; each start one array a parameter.
    Source: Liu & Nocedal 1989, doi:10.1007/BF01589116, as in scipy.
    """
    network = bare(network)
    name = fresh_name("weight", [leaf.name for leaf in network.leaves])
    rest = network - algebra.leaf(name, network.indices, kind="input")
    loss = (rest * rest.conj()).real.sum() if weight.dtype.kind == "c" else (rest * rest).sum()
    run = compile_network(loss, framework="numpy", backend="numpy", dtype=weight.dtype.name, seed=0)
    found = [_fitted(run, weight, start) for start in starts]
    return min(found, key=lambda pair: pair[1])


def _fitted(run: Any, weight: np.ndarray, start: Cores) -> tuple[Cores, float]:
    scale = float(np.linalg.norm(weight)) ** 2 or 1.0

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        cores = _cores(flat, start)
        value, slopes = run.value_and_grad(weight, parameters=cores)
        return float(value) / scale, _flat({name: slopes[name] for name in start}) / scale

    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 1e-15, "gtol": 1e-12}
    result = scipy.optimize.minimize(
        objective, _flat(start), jac=True, method="L-BFGS-B", options=options
    )
    return _cores(result.x, start), float(result.fun * scale) ** 0.5


def _flat(cores: Cores) -> np.ndarray:
    """All numbers in a row, complex ones as two."""
    parts = [core.ravel() for core in cores.values()]
    joined = np.concatenate(parts)
    return joined.view(np.float64) if joined.dtype.kind == "c" else joined


def _cores(flat: np.ndarray, like: Cores) -> Cores:
    numbers = flat.view(np.result_type(*like.values()))
    cores, start = {}, 0
    for name, core in like.items():
        cores[name] = numbers[start : start + core.size].reshape(core.shape)
        start += core.size
    return cores
