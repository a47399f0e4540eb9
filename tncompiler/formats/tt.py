"""TT (MPS): a chain with one core for each mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.trains import named_cores, train_bonds, train_cuts, tt_svd
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class TT(Format):
    """Tensor train, or matrix product state: a chain of cores, inputs first.

    Shapes: G1 (i1, r1), G2 (r1, i2, r2), …, the last one (r, o); n modes, n - 1 bonds.
    Cost:   sum of r[k-1] * size[k] * r[k] stored.
    Error:  TT-SVD, within sqrt(n - 1) of the best (Oseledets 2011, doi:10.1137/090752286).
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return train_bonds([(index,) for index in modes.all])

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        chain = [None, *bonds.values(), None]
        cores = []
        for k, index in enumerate(modes.all):
            axes = [a for a in (chain[k], index, chain[k + 1]) if a is not None]
            cores.append(param(f"G{k + 1}", *axes))
        return contract(*cores, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        groups = [(axis,) for axis in range(weight.ndim)]
        cores, found, bound = tt_svd(weight, groups, list(ranks.values()), tail, seed)
        return Factored(named_cores(cores), dict(zip(ranks, found, strict=True)), bound)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return train_cuts([(axis,) for axis in range(len(modes.all))], list(ranks.values()))
