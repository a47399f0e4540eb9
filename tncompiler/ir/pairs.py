"""Leading directions of a bond: what truncates it, as expressions and as steps.

For the Gram matrices of what is left and right of a bond, (…, r, r) each, the columns x of the
result solve R L x = λ x with xᵀ L x = 1, for the largest λ, the squares of the singular values of
the whole. Then left · X · Xᵀ L · right is the nearest tensor with so few singular values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tncompiler.ir.errors import DTypeError, GradientError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.sizes import size_text


@dataclass(frozen=True, slots=True)
class Pairs:
    """Operands: left and right Gram matrices; value (…, r, count), singular values of at most
    `cutoff` times the largest being left out as columns of zeros."""

    count: int
    cutoff: float

    def text(self) -> str:
        return f"pairs[{self.count} above {self.cutoff!r}]"


@dataclass(frozen=True, slots=True)
class PairsAdjoint:
    """Operands: those of a Pairs and a cotangent of its value; value (…, 2, r, r), the gradients
    by the left and the right matrix."""

    count: int
    cutoff: float

    def text(self) -> str:
        return f"pairs_adjoint[{self.count} above {self.cutoff!r}]"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Leading(Expr):
    """The value of `Pairs`: axes of left, but the last one is the new bond."""

    left: Expr
    right: Expr
    cutoff: float

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.left, self.right)

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return dict(zip(("left", "right"), operands, strict=True))

    def _positional(self) -> tuple[object, ...]:
        size = size_text(self.indices[-1].size)
        return (size, self.cutoff, self.left.digest, self.right.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LeadingAdjoint(Expr):
    """The value of `PairsAdjoint`: the batch, two, and the axes of a matrix."""

    left: Expr
    right: Expr
    cotangent: Expr
    cutoff: float

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.left, self.right, self.cotangent)

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return dict(zip(("left", "right", "cotangent"), operands, strict=True))

    def _positional(self) -> tuple[object, ...]:
        return (self.cutoff, *(operand.digest for operand in self.operands))


def leading(left: Expr, right: Expr, bond: Index, cutoff: float) -> Expr:
    """The leading directions as an expression; the last axis of `left` becomes `bond`."""
    return Leading((*left.indices[:-1], bond), left, right, cutoff)


def refuse_complex(dtype: str) -> None:
    """Raises DTypeError for numbers that are not real."""
    if not dtype.startswith(("float", "bfloat", "default")):
        raise DTypeError(
            f"compress is not defined for {dtype} numbers", fix="compress real networks"
        )


def no_second_derivative() -> GradientError:
    return GradientError(
        "the truncation of a bond has first derivatives in reverse mode only",
        fix="take gradients once, and leave compress out of what jvp or a second gradient sees",
    )
