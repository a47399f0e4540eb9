"""Tucker: one core with a bond to a factor for each mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.balance import balanced_by_name
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.hosvd import hooi, hosvd, mode_capacities
from tncompiler.formats.modes import Modes
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class Tucker(Format):
    """Tucker format: a core joined to one factor for each mode.

        i1──U1──p1─┐   ┌─q1──V1──o1
                   ├─C─┤
        i2──U2──p2─┘   └─q2──V2──o2

    Shapes: C (p1, …, q1, …), Uk (i_k, p_k), Vk (o_k, q_k).
    Cost:   product of all ranks + sum of size * rank stored.
    Error:  HOSVD, then HOOI, which only lowers it: within the root of the sum of squared tails, and
            sqrt(number of modes) of the best (De Lathauwer et al. 2000, truncated one mode after
            the other as in Vannieuwenhoven et al. 2012, doi:10.1137/110836067).
    Source: Kolda & Bader 2009, doi:10.1137/07070111X, section 4.
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return mode_bonds(modes)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        core = param("C", *bonds.values())
        triples = zip(factor_names(modes), modes.all, bonds.values(), strict=True)
        factors = [param(name, mode, bond) for name, mode, bond in triples]
        return contract(core, *factors, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        factors, bound = hosvd(weight, list(ranks.values()), tail, seed)
        factors, core = hooi(weight, factors, seed)
        found = dict(zip(ranks, core.shape, strict=True))
        cores = {"C": core, **dict(zip(factor_names(modes), factors, strict=True))}
        return Factored(balanced_by_name(cores), found, bound)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return [Cut((k,), rank) for k, rank in enumerate(ranks.values())]


def mode_bonds(modes: Modes) -> tuple[Bond, ...]:
    """A bond p_k for each input mode and q_k for each output mode."""
    names = [f"p{k}" for k in range(1, len(modes.ins) + 1)]
    names += [f"q{k}" for k in range(1, len(modes.outs) + 1)]
    capacities = mode_capacities(modes.numbers()) if modes.known else [None] * len(names)
    return tuple(map(Bond, names, capacities))


def factor_names(modes: Modes) -> list[str]:
    """U1, …, V1, …"""
    ins = [f"U{k}" for k in range(1, len(modes.ins) + 1)]
    return [*ins, *(f"V{k}" for k in range(1, len(modes.outs) + 1))]
