"""Canonical polyadic decomposition: what CP and Kronecker (CP over pairs of modes) share."""

from __future__ import annotations

from math import prod

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.als import als, random_cores
from tncompiler.formats.balance import balanced
from tncompiler.formats.least_squares import Cores
from tncompiler.formats.svd import Truncation, truncated_svd
from tncompiler.ir.index import Index

_RANDOM_STARTS = 2


def full_rank(sizes: tuple[int, ...]) -> int:
    """The rank with which every tensor of these sizes can be written: their product but for one."""
    return prod(sizes) // max(max(sizes), 1)


def cp_factors(tensor: np.ndarray, rank: int, seed: int) -> tuple[list[np.ndarray], float | None]:
    """Factors (size, rank), one for each axis, and the norm of the error where it is the best.

    Two axes: SVD. From `full_rank` on: an exact construction. Else alternating least squares from
    the leading singular vectors of all unfoldings and from random starts; the best is kept.
    """
    if tensor.ndim == 1:
        return [_widened(tensor[:, None], rank)], 0.0
    if tensor.ndim == 2:
        return _matrix_factors(tensor, rank, seed)
    if rank >= full_rank(tensor.shape):
        return balanced(_exact_factors(tensor, rank)), 0.0
    rng = np.random.default_rng(seed)
    r = Index("r", rank)
    axes = [Index(f"k{k}", size) for k, size in enumerate(tensor.shape)]
    names = [f"A{k}" for k in range(tensor.ndim)]
    pairs = zip(names, axes, strict=True)
    network = contract(*(param(name, axis, r) for name, axis in pairs), out=axes)
    starts = [_leading(tensor, rank, rng), *random_cores(network, tensor, rng, _RANDOM_STARTS)]
    cores, _ = als(network, tensor, starts)
    return balanced(_normalized([cores[name] for name in names])), None


def _matrix_factors(matrix: np.ndarray, rank: int, seed: int) -> tuple[list[np.ndarray], float]:
    u, s, vh, dropped = truncated_svd(matrix, Truncation(rank), seed)
    root = np.sqrt(s)
    return [_widened(u * root, rank), _widened((root[:, None] * vh).T, rank)], dropped


def _widened(factor: np.ndarray, rank: int) -> np.ndarray:
    """The factor with columns of zeros up to `rank`."""
    return np.pad(factor, [(0, 0), (0, rank - factor.shape[1])])


def _exact_factors(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """Unit vectors on all axes but the longest, which has the fibres of the tensor."""
    pivot = int(np.argmax(tensor.shape))
    fibres = np.moveaxis(tensor, pivot, 0).reshape(tensor.shape[pivot], -1)
    others = [size for k, size in enumerate(tensor.shape) if k != pivot]
    places = np.indices(others).reshape(len(others), -1)
    units = [np.eye(size)[:, place] for size, place in zip(others, places, strict=True)]
    factors: list[np.ndarray] = [unit.astype(tensor.dtype) for unit in units]
    factors.insert(pivot, fibres)
    return [_widened(factor, rank) for factor in factors]


def _leading(tensor: np.ndarray, rank: int, rng: np.random.Generator) -> Cores:
    """Left singular vectors of every unfolding; columns beyond them are random."""
    cores = {}
    for k, size in enumerate(tensor.shape):
        unfolded = np.moveaxis(tensor, k, 0).reshape(size, -1)
        u = truncated_svd(unfolded, Truncation(rank))[0]
        more = rng.standard_normal((size, max(rank - u.shape[1], 0))) / size**0.5
        cores[f"A{k}"] = np.hstack([u, more]).astype(tensor.dtype)
    return cores


def _normalized(factors: list[np.ndarray]) -> list[np.ndarray]:
    """Each term's scale shared evenly among its factors."""
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in factors])
    if not norms.all():
        return factors
    common = np.exp(np.log(norms).mean(axis=0))
    return [factor * (common / norm) for factor, norm in zip(factors, norms, strict=True)]
