"""Higher-order SVD and orthogonal iteration: what Tucker and BlockTerm share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tncompiler.formats.svd import TailBudget, Truncation, project, truncated_svd

_SWEEPS = 25
_GAIN = 1e-4  # a sweep that lowers the error by less, relative, is the last


def mode_capacities(sizes: Sequence[int]) -> list[int]:
    """The rank of each mode against the rest, at most."""
    return [min(size, prod(sizes) // max(size, 1)) for size in sizes]


def hosvd(
    tensor: np.ndarray, ranks: Sequence[int], tail: float, seed: int
) -> tuple[list[np.ndarray], float]:
    """Orthonormal factors (size, rank), mode after mode, and the norm that they leave out.

    Cost:   an SVD for each mode, of a tensor that shrinks.
    Source: Vannieuwenhoven, Vandebril & Meerbergen 2012, doi:10.1137/110836067.
    """
    budget = TailBudget(tail, tensor.ndim)
    factors, rest = [], tensor
    for k, rank in enumerate(ranks):
        factor, inside = project(rest, [k], rank, budget, seed)
        rest = np.moveaxis(inside, 0, k)
        factors.append(factor)
    return factors, budget.dropped


def hooi(
    tensor: np.ndarray, factors: list[np.ndarray], seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Better factors of the same ranks, and the core; the error never grows.

    Source: De Lathauwer, De Moor & Vandewalle 2000, doi:10.1137/S0895479898346995.
    """
    factors = list(factors)
    total = float(np.linalg.norm(tensor)) ** 2
    core = compress(tensor, factors)
    rest = total - float(np.linalg.norm(core)) ** 2
    for _ in range(_SWEEPS):
        if rest <= 1e-12 * total:
            break
        new = list(factors)
        for k in range(tensor.ndim):
            inside = np.moveaxis(compress(tensor, new, skip=k), k, 0).reshape(tensor.shape[k], -1)
            new[k] = truncated_svd(inside, Truncation(new[k].shape[1]), seed)[0]
        found = compress(tensor, new)
        left = total - float(np.linalg.norm(found)) ** 2
        if left > rest or found.shape != core.shape:
            break
        gained, factors, core, rest = rest - left, new, found, left
        if gained <= _GAIN * left:
            break
    return factors, core


def compress(
    tensor: np.ndarray, factors: Sequence[np.ndarray], skip: int | None = None
) -> np.ndarray:
    """The tensor in the bases of all factors, but for one mode."""
    for k, factor in enumerate(factors):
        if k != skip:
            tensor = np.moveaxis(np.tensordot(factor.conj(), tensor, axes=(0, k)), 0, k)
    return tensor


def expand(core: np.ndarray, factors: Sequence[np.ndarray]) -> np.ndarray:
    """The core times all factors."""
    for k, factor in enumerate(factors):
        core = np.moveaxis(np.tensordot(factor, core, axes=(1, k)), 0, k)
    return core
