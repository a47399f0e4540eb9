"""CP (canonical polyadic, PARAFAC): a sum of outer products, one factor for each mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.canonical import cp_factors, full_rank
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class CP(Format):
    """Canonical polyadic format: all factors meet in one bond r.

        i1──U1─┐   ┌─V1──o1
               ├─r─┤             r is one index on all factors
        i2──U2─┘   └─V2──o2

    Shapes: Uk (i_k, r) for inputs, Vk (o_k, r) for outputs.
    Cost:   r * sum of all sizes stored.
    Error:  no bound: alternating least squares from the leading singular vectors and two random
            starts. With two modes it is the SVD. Rank prod(sizes) / max(sizes) holds every weight
            and is built exactly; the bond carries no more.
    Source: Kolda & Bader 2009, doi:10.1137/07070111X, section 3; as a layer Lebedev et al. 2015,
            arXiv:1412.6553.
    """

    direct: ClassVar[bool] = False

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return (Bond("r", full_rank(modes.numbers()) if modes.known else None),)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        pairs = zip(_names(modes), modes.all, strict=True)
        return contract(*(param(name, mode, bonds["r"]) for name, mode in pairs), out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        factors, bound = cp_factors(weight, ranks["r"], seed)
        return Factored(dict(zip(_names(modes), factors, strict=True)), dict(ranks), bound)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        count = len(modes.all)
        prefixes = [tuple(range(k)) for k in range(2, count - 1)]
        return [Cut(side, ranks["r"]) for side in (*((k,) for k in range(count)), *prefixes)]


def _names(modes: Modes) -> list[str]:
    ins = [f"U{k}" for k in range(1, len(modes.ins) + 1)]
    return [*ins, *(f"V{k}" for k in range(1, len(modes.outs) + 1))]
