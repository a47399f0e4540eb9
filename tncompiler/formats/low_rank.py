"""LowRank: a matrix as the product of a tall and a wide one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from tncompiler.dsl import param
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes, size_of
from tncompiler.formats.svd import Truncation, truncated_svd
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class LowRank(Format):
    """Inputs and outputs joined by one bond: W = A B.

    Shapes: A (*in_shape, rank), B (rank, *out_shape).
    Cost:   rank * (inputs + outputs) stored.
    Error:  the best there is for the rank (Eckart & Young 1936, doi:10.1007/BF02288367).
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        if not modes.known:
            return (Bond("r"),)
        sizes = [int(size_of(side)) for side in (modes.ins, modes.outs)]
        return (Bond("r", min(sizes)),)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        r = bonds["r"]
        return param("A", *modes.ins, r) @ param("B", r, *modes.outs)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        ins = weight.shape[: len(modes.ins)]
        keep = Truncation(ranks["r"], tail)
        u, s, vh, dropped = truncated_svd(weight.reshape(prod(ins), -1), keep, seed)
        root = np.sqrt(s)  # both cores get the same scale
        cores = {
            "A": (u * root).reshape(*ins, len(s)),
            "B": (root[:, None] * vh).reshape(len(s), *weight.shape[len(ins) :]),
        }
        return Factored(cores, {"r": len(s)}, dropped)

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return (Cut(tuple(range(len(modes.ins))), ranks["r"]),)
