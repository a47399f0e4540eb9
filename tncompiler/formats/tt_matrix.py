"""TTMatrix (MPO, BlockTT): a chain with one core for each pair of an input and an output mode."""

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
class TTMatrix(Format):
    """Tensor-train matrix, or matrix product operator: core k holds modes i_k and o_k.

    Shapes: G1 (i1, o1, r1), G2 (r1, i2, o2, r2), …; where one side has more modes than the other,
            the last cores hold one mode only.
    Cost:   sum of r[k-1] * i[k] * o[k] * r[k] stored.
    Error:  TT-SVD on pairs of modes (Oseledets 2011, doi:10.1137/090752286, section 4; as a layer
            Novikov et al. 2015, arXiv:1509.06569).
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return train_bonds(modes.pairs())

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        chain = [None, *bonds.values(), None]
        cores = []
        for k, pair in enumerate(modes.pairs()):
            axes = [a for a in (chain[k], *pair, chain[k + 1]) if a is not None]
            cores.append(param(f"G{k + 1}", *axes))
        return contract(*cores, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        cores, found, bound = tt_svd(
            weight, modes.pair_positions(), list(ranks.values()), tail, seed
        )
        return Factored(named_cores(cores), dict(zip(ranks, found, strict=True)), bound)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return train_cuts(modes.pair_positions(), list(ranks.values()))
