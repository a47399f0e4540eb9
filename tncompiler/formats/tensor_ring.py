"""TensorRing: a chain of cores, one for each mode, that is closed to a ring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.als import als, random_cores
from tncompiler.formats.balance import balanced, balanced_by_name
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.least_squares import Cores
from tncompiler.formats.modes import Modes
from tncompiler.formats.svd import Truncation, truncated_svd
from tncompiler.formats.trains import tt_svd
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index

_NOISE = 0.05  # on a train that starts a ring, relative: zeros would stay zeros
_EXACT = 1e-13


@dataclass(frozen=True)
class TensorRing(Format):
    """Tensor ring: a tensor train whose ends are joined by one more bond, inputs first.

        i1    i2    o1    o2
        │     │     │     │
     ┌──G1─r1─G2─r2─G3─r3─G4──┐
     └───────────r4───────────┘

    Shapes: Gk (r[k-1], size[k], r[k]), r[0] being the last bond; n modes, n bonds.
    Cost:   sum of r[k-1] * size[k] * r[k] stored.
    Error:  no bound: alternating least squares from a train, a ring by SVD and a random start. A
            bond carries what it would in a train that is open at the best other bond; where the
            ranks hold a train of the weight (at full rank they always do), that is the result.
    Source: Zhao et al. 2016, arXiv:1606.05535; as a layer Wang et al. 2018, arXiv:1802.09052.
    """

    direct: ClassVar[bool] = False

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        count = len(modes.all)
        capacities = _capacities(modes.numbers()) if modes.known else [None] * count
        return tuple(Bond(f"r{k}", most) for k, most in enumerate(capacities, start=1))

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        right = list(bonds.values())
        left = [right[-1], *right[:-1]]
        triples = enumerate(zip(left, modes.all, right, strict=True), start=1)
        return contract(*(param(f"G{k}", *axes) for k, axes in triples), out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        sizes = list(ranks.values())
        train, bound = _train(weight, sizes, seed)
        if bound <= _EXACT * float(np.linalg.norm(weight)):
            return Factored(train, dict(ranks))
        rng = np.random.default_rng(seed)
        bonds = {name: Index(name, rank) for name, rank in ranks.items()}
        network = self.build(modes, bonds)
        starts = [
            _stirred(train, rng),
            _stirred(_ring(weight, sizes, seed), rng),
            *random_cores(network, weight, rng),
        ]
        cores, _ = als(network, weight, starts)
        return Factored(balanced_by_name(cores), dict(ranks))

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        sizes = list(ranks.values())
        count = len(sizes)
        arcs = {(k, k + 1) for k in range(count)} | {(0, k) for k in range(2, count)}
        return [Cut(tuple(range(a, b)), sizes[a - 1] * sizes[b - 1]) for a, b in sorted(arcs)]


def _capacities(sizes: Sequence[int]) -> list[int]:
    """For each bond, the most a train carries there that is open at another bond."""
    count, whole = len(sizes), prod(sizes)
    result = []
    for bond in range(count):
        turned = [sizes[(bond + 1 + k) % count] for k in range(count)]
        arcs = [prod(turned[:k]) for k in range(1, count)]
        result.append(max(min(arc, whole // max(arc, 1)) for arc in arcs))
    return result


def _train(weight: np.ndarray, ranks: Sequence[int], seed: int) -> tuple[Cores, float]:
    """A train in a ring: the last bond uses one value, the others the ranks they have."""
    groups = [(axis,) for axis in range(weight.ndim)]
    cores, _, bound = tt_svd(weight, groups, ranks[:-1], 0.0, seed)
    return _placed(cores, ranks), bound


def _placed(cores: Sequence[np.ndarray], ranks: Sequence[int]) -> Cores:
    """Smaller cores in the corners of cores of the ring's ranks, zeros elsewhere."""
    result = {}
    for k, core in enumerate(cores):
        whole = np.zeros((ranks[k - 1], core.shape[1], ranks[k]), core.dtype)
        whole[: core.shape[0], :, : core.shape[2]] = core
        result[f"G{k + 1}"] = whole
    return result


def _ring(weight: np.ndarray, ranks: Sequence[int], seed: int) -> Cores:
    """The ring whose first SVD is split between the last bond and the first.

    Source: Zhao et al. 2016, arXiv:1606.05535, algorithm 1.
    """
    last, first = ranks[-1], ranks[0]
    u, s, vh, _ = truncated_svd(weight.reshape(weight.shape[0], -1), Truncation(last * first), seed)
    short = last * first - len(s)
    u, rest = np.pad(u, [(0, 0), (0, short)]), np.pad(s[:, None] * vh, [(0, short), (0, 0)])
    cores = [u.reshape(-1, last, first).transpose(1, 0, 2)]
    rest = rest.reshape(last, first, -1).transpose(1, 2, 0)  # the last bond stays open at the end
    for size, rank in zip(weight.shape[1:-1], ranks[1:-1], strict=True):
        left = rest.shape[0]
        u, s, vh, _ = truncated_svd(rest.reshape(left * size, -1), Truncation(rank), seed)
        cores.append(u.reshape(left, size, -1))
        rest = (s[:, None] * vh).reshape(len(s), -1, last)
    cores.append(rest.reshape(rest.shape[0], weight.shape[-1], last))
    return _placed(balanced(cores), ranks)


def _stirred(cores: Cores, rng: np.random.Generator) -> Cores:
    """The cores with some noise."""
    result = {}
    for name, core in cores.items():
        scale = _NOISE * float(np.sqrt(np.mean(np.abs(core) ** 2)))
        result[name] = core + scale * rng.standard_normal(core.shape)
    return result
