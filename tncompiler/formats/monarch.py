"""Monarch: two block-diagonal matrices with a permutation between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class Monarch(Format):
    """Two block-diagonal matrices, R with a block for each i1 and L with a block for each o2.

        i2──R──r──L──o1        i1 and o2 are on both cores
            │     │
          i1,o2 i1,o2

    Shapes: R (i1, i2, o2, r), L (i1, o2, r, o1).
    Cost:   r * i1 * o2 * (i2 + o1) stored.
    Error:  the best there is, by one SVD for each pair (i1, o2).
    Raises: FormatError unless there are exactly two input and two output modes.
    Source: Dao et al. 2022, arXiv:2204.00595, section 3; there r is 1.
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        if len(modes.ins) != 2 or len(modes.outs) != 2:
            raise FormatError(
                f"Monarch has two input and two output modes, not {len(modes.ins)} and "
                f"{len(modes.outs)}",
                fix="factor both sizes into two: tnc.formats.factorize(n, 2)",
            )
        sizes = (modes.ins[1].size, modes.outs[0].size)
        return (Bond("r", min(map(int, sizes)) if modes.known else None),)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        (i1, i2), (o1, o2), r = modes.ins, modes.outs, bonds["r"]
        return contract(param("R", i1, i2, o2, r), param("L", i1, o2, r, o1), out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        blocks = weight.transpose(0, 3, 1, 2)  # (i1, o2, i2, o1)
        u, s, vh = np.linalg.svd(blocks, full_matrices=False)
        rank = _common_rank(s, ranks["r"], tail)
        root = np.sqrt(s[..., :rank])
        cores = {
            "R": (u[..., :rank] * root[..., None, :]).transpose(0, 2, 1, 3),
            "L": root[..., None] * vh[..., :rank, :],
        }
        return Factored(cores, {"r": rank}, float(np.linalg.norm(s[..., rank:])))

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return (Cut((1,), ranks["r"], batch=(0, 3)),)


def _common_rank(values: np.ndarray, most: int, tail: float) -> int:
    """The smallest rank, the same in all blocks, that leaves at most `tail` out in total."""
    if not tail > 0:
        return most
    dropped = [float(np.linalg.norm(values[..., rank:])) for rank in range(most)]
    return next((rank for rank, norm in enumerate(dropped) if rank and norm <= tail), most)
