"""The positions of an index as numbers: an expression, and the step that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.scope import check_indices
from tncompiler.ir.sizes import size_text


@dataclass(frozen=True, slots=True)
class Positions:
    """0, 1, 2, … as int64, as many as the step's value has; no operands."""

    def text(self) -> str:
        return "positions"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Arange(Expr):
    """0, 1, 2, … along the one index."""

    def _positional(self) -> tuple[object, ...]:
        return (size_text(self.indices[0].size),)


def arange(index: Index) -> Expr:
    """The positions 0, 1, 2, … of an index, as int64: `tnc.arange(s) <= t` makes masks."""
    check_indices((index,), "arange")
    return Arange((index,))
