"""Kronecker: a sum of Kronecker products, one factor for each pair of modes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.canonical import cp_factors, full_rank
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class Kronecker(Format):
    """Sum of `rank` Kronecker products A1 ⊗ A2 ⊗ …: CP over pairs of an input and an output mode.

        i1      i2      i3
        │       │       │
        A1──r───A2──r───A3      r is one index on all factors
        │       │       │
        o1      o2      o3

    Shapes: Ak (i_k, o_k, r); where one side has more modes than the other, the last factors have
            one mode only.
    Cost:   r * sum of i_k * o_k stored.
    Error:  two pairs: the best there is, by the SVD of the rearranged matrix (Van Loan & Pitsianis
            1993, doi:10.1007/978-94-015-8196-7_17). More: alternating least squares, no bound.
            Rank prod / max of the pairs' sizes holds every weight and is built exactly.
    """

    direct: ClassVar[bool] = False

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        if not modes.known:
            return (Bond("r"),)
        sizes = tuple(prod(int(index.size) for index in pair) for pair in modes.pairs())
        return (Bond("r", full_rank(sizes)),)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        pairs = enumerate(modes.pairs(), start=1)
        factors = [param(f"A{k}", *pair, bonds["r"]) for k, pair in pairs]
        return contract(*factors, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        groups = modes.pair_positions()
        shapes = [tuple(weight.shape[axis] for axis in group) for group in groups]
        order = [axis for group in groups for axis in group]
        paired = weight.transpose(order).reshape([prod(shape) for shape in shapes])
        factors, bound = cp_factors(paired, ranks["r"], seed)
        cores = {
            f"A{k}": factor.reshape(*shape, -1)
            for k, (factor, shape) in enumerate(zip(factors, shapes, strict=True), start=1)
        }
        return Factored(cores, dict(ranks), bound)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        groups = modes.pair_positions()
        return [Cut(group, ranks["r"]) for group in groups] if len(groups) > 1 else ()
