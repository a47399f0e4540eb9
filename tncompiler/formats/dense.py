"""Dense: the weight itself, one core with every mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tncompiler.dsl import param
from tncompiler.formats.format import Bond, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class Dense(Format):
    """The weight as it is: one core W with all modes, no bonds.

    Shapes: W (*in_shape, *out_shape).
    Cost:   product of all sizes stored.
    """

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return ()

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        return param("W", *modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        return Factored({"W": weight}, {}, 0.0)
