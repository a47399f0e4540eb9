"""Methods and operators of expressions. Each is one call of the checked constructor in `algebra`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    import types

    from tncompiler.ir.expressions import Expr
    from tncompiler.ir.index import Index


def _algebra() -> types.ModuleType:
    from tncompiler.ir import algebra  # it imports the nodes, which inherit from this file

    return algebra


class Operators:
    """What `a + b`, `a @ b`, `a.sum(i)` … mean; see SEMANTICS in the documentation."""

    __slots__ = ()
    __array_ufunc__ = None  # numpy defers to our reflected operators

    def __add__(self, other: Any) -> Expr:
        return _algebra().elementwise("add", self, other)

    def __radd__(self, other: Any) -> Expr:
        return _algebra().elementwise("add", other, self)

    def __sub__(self, other: Any) -> Expr:
        return _algebra().elementwise("sub", self, other)

    def __rsub__(self, other: Any) -> Expr:
        return _algebra().elementwise("sub", other, self)

    def __mul__(self, other: Any) -> Expr:
        return _algebra().multiply(self, other)

    def __rmul__(self, other: Any) -> Expr:
        return _algebra().multiply(other, self)

    def __truediv__(self, other: Any) -> Expr:
        return _algebra().elementwise("div", self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return _algebra().elementwise("div", other, self)

    def __pow__(self, exponent: Any) -> Expr:
        return _algebra().power(self, exponent)

    def __neg__(self) -> Expr:
        return _algebra().elementwise("neg", self)

    def __matmul__(self, other: Any) -> Expr:
        return _algebra().matmul(self, other)

    def __rmatmul__(self, other: Any) -> Expr:
        return _algebra().matmul(other, self)

    def __lt__(self, other: Any) -> Expr:
        return _algebra().elementwise("less", self, other)

    def __le__(self, other: Any) -> Expr:
        return _algebra().elementwise("less_equal", self, other)

    def __gt__(self, other: Any) -> Expr:
        return _algebra().elementwise("greater", self, other)

    def __ge__(self, other: Any) -> Expr:
        return _algebra().elementwise("greater_equal", self, other)

    def __bool__(self) -> bool:
        return _algebra().refuse_truth(self)  # type: ignore[no-any-return]

    def __call__(self, *indices: Index) -> Expr:
        """The same tensor with its axes called `indices`, by position."""
        return _algebra().reindex(self, indices)

    def sum(self, *over: Any) -> Expr:
        """Sum over indices; over all of them if none is given."""
        return _algebra().sum_over(self, over)

    def mean(self, *over: Any) -> Expr:
        """Mean over indices; over all of them if none is given."""
        return _algebra().mean(self, over)

    def max(self, *over: Any) -> Expr:
        """Maximum over indices; a tie shares its gradient evenly, as `torch.amax`."""
        return _algebra().reduce_over("max", self, over)

    def min(self, *over: Any) -> Expr:
        """Minimum over indices; a tie shares its gradient evenly, as `torch.amin`."""
        return _algebra().reduce_over("min", self, over)

    def rename(self, names: Mapping[Any, Index]) -> Expr:
        """Call indices otherwise: `t.rename({i: j})`. Raises onto an index already present."""
        return _algebra().rename(self, names)

    def transpose(self, *order: Any) -> Expr:
        """The same tensor with its indices in another order."""
        return _algebra().transpose(self, order)

    def split(self, index: Any, parts: tuple[Index, ...]) -> Expr:
        """See one index as several, the first varying slowest; sizes must multiply out."""
        return _algebra().split(self, index, parts)

    def merge(self, parts: tuple[Any, ...], into: Index) -> Expr:
        """See several indices as one, the first varying slowest; sizes must multiply out."""
        return _algebra().merge(self, parts, into)

    def select(self, index: Any, position: int) -> Expr:
        """The tensor at one position of an index; the index is gone."""
        return _algebra().select(self, index, position)

    def slice(self, index: Any, start: Size, stop: Size) -> Expr:
        """Positions start … stop - 1 of an index, which keeps its name."""
        return _algebra().slice_index(self, index, start, stop)

    def pad(self, index: Any, before: Size, after: Size) -> Expr:
        """Zeros around an index, which keeps its name."""
        return _algebra().pad(self, index, before, after)

    def conj(self) -> Expr:
        """Complex conjugate."""
        return _algebra().elementwise("conj", self)

    @property
    def real(self) -> Expr:
        """Real part."""
        return _algebra().elementwise("real", self)

    @property
    def imag(self) -> Expr:
        """Imaginary part."""
        return _algebra().elementwise("imag", self)

    def abs(self) -> Expr:
        """Absolute value; its gradient at 0 is 0."""
        return _algebra().elementwise("abs", self)

    __abs__ = abs

    def astype(self, dtype: object) -> Expr:
        """The same values in another dtype."""
        return _algebra().cast(self, dtype)

    def replace(self, leaf: Expr, by: Expr) -> Expr:
        """The expression with a leaf (this use of it) replaced by an expression."""
        return _algebra().replace(self, leaf, by)

    def to_json(self) -> str:
        """The expression as JSON text that `tnc.from_json` reads."""
        from tncompiler.ir.serialize import to_json

        return to_json(self)  # type: ignore[arg-type]
