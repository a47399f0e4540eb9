"""Gauges for cores that are rounded: the weight is the same, its numbers lose less.

Rescaling along a bond, or turning it by an orthogonal matrix, costs nothing in a network. Scales
bring the largest numbers of all slices at a bond to one size (Nagel et al. 2019, arXiv:1906.04721,
there between layers); random rotations spread single large numbers over all channels (Ashkboos et
al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tncompiler.formats.bonds import Cores, NetworkBond, Sites
from tncompiler.formats.gauge import canonical_cores, regauged_cores

_ROUNDS = 20
ROTATIONS = 3


def equalized_cores(sites: Sites, cores: Cores) -> dict[str, np.ndarray]:
    """Cores of the same weight whose slices at each bond have one largest magnitude."""
    made = dict(cores)
    for _ in range(_ROUNDS):
        for bond in sites.bonds:
            if bond.movable and len(bond.ends) > 1:
                made = _balanced_along(made, bond)
    return made


def _balanced_along(cores: Cores, bond: NetworkBond) -> dict[str, np.ndarray]:
    made = dict(cores)
    sizes = []
    for end in bond.ends:
        rows = np.moveaxis(made[end.core], end.axis, 0).reshape(bond.size, -1)
        sizes.append(np.abs(rows).max(axis=1))
    alive = np.prod(sizes, axis=0) > 0
    held = [np.where(alive, size, 1.0) for size in sizes]
    common = np.exp(np.mean([np.log(size) for size in held], axis=0))
    for end, size in zip(bond.ends, held, strict=True):
        shape = [bond.size if axis == end.axis else 1 for axis in range(made[end.core].ndim)]
        made[end.core] = made[end.core] * (common / size).reshape(shape)
    return made


def rounding_gauges(
    sites: Sites, cores: Cores, seed: int, turn: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Cores of the same weight in which rounding may cost less, the given ones first.

    ``turn``: whether channels may be mixed, which zeros do not survive.
    """
    yield dict(cores)
    yield equalized_cores(sites, cores)
    if not turn or not sites.bonds or not all(bond.movable for bond in sites.bonds):
        return
    canonical = canonical_cores(sites, cores)
    yield canonical
    yield equalized_cores(sites, canonical)
    pairs = [bond for bond in sites.bonds if bond.joins_two]
    rng = np.random.default_rng(seed)
    for _ in range(ROTATIONS if pairs else 0):
        turned = canonical
        for bond in pairs:
            turned = regauged_cores(sites, turned, bond.name, _rotation(bond.size, rng))
        yield turned
        yield equalized_cores(sites, turned)


def _rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    turned: np.ndarray = q * np.sign(np.diag(r))
    return turned
