"""Methods and operators of expressions: each is one call of a constructor in `algebra`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.ir import algebra
    from tncompiler.ir.expressions import Expr
    from tncompiler.ir.index import Index
else:

    class _OnFirstUse:
        """Stands for `algebra`, which imports the nodes, which inherit from this file."""

        def __getattr__(self, name):
            from tncompiler.ir import algebra

            return getattr(algebra, name)

    algebra = _OnFirstUse()


class Operators:
    """What `a + b`, `a @ b`, `a.sum(i)` … mean; see SEMANTICS in the documentation."""

    __slots__ = ()
    __array_ufunc__ = None  # numpy defers to our reflected operators

    def __add__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("add", self, other)

    def __radd__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("add", other, self)

    def __sub__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("sub", self, other)

    def __rsub__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("sub", other, self)

    def __mul__(self: Any, other: Any) -> Expr:
        return algebra.multiply(self, other)

    def __rmul__(self: Any, other: Any) -> Expr:
        return algebra.multiply(other, self)

    def __truediv__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("div", self, other)

    def __rtruediv__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("div", other, self)

    def __pow__(self: Any, exponent: Any) -> Expr:
        return algebra.power(self, exponent)

    def __floordiv__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("floordiv", self, other)

    def __mod__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("mod", self, other)

    def __neg__(self: Any) -> Expr:
        return algebra.elementwise("neg", self)

    def __matmul__(self: Any, other: Any) -> Expr:
        return algebra.matmul(self, other)

    def __rmatmul__(self: Any, other: Any) -> Expr:
        return algebra.matmul(other, self)

    def __lt__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("less", self, other)

    def __le__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("less_equal", self, other)

    def __gt__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("greater", self, other)

    def __ge__(self: Any, other: Any) -> Expr:
        return algebra.elementwise("greater_equal", self, other)

    def __bool__(self: Any) -> bool:
        from tncompiler.ir.scope import refuse_truth

        refuse_truth(self)

    def __call__(self: Any, *indices: Index) -> Expr:
        """The same tensor with its axes called `indices`, by position."""
        return algebra.reindex(self, indices)

    def sum(self: Any, *over: Any) -> Expr:
        """Sum over indices; over all of them if none is given."""
        return algebra.sum_over(self, over)

    def mean(self: Any, *over: Any) -> Expr:
        """Mean over indices; over all of them if none is given."""
        return algebra.mean(self, over)

    def max(self: Any, *over: Any) -> Expr:
        """Maximum over indices; a tie shares its gradient evenly, as `torch.amax`."""
        return algebra.reduce_over("max", self, over)

    def min(self: Any, *over: Any) -> Expr:
        """Minimum over indices; a tie shares its gradient evenly, as `torch.amin`."""
        return algebra.reduce_over("min", self, over)

    def rename(self: Any, names: Mapping[Any, Index]) -> Expr:
        """Call indices otherwise: `t.rename({i: j})`. Raises onto an index already present."""
        return algebra.rename(self, names)

    def transpose(self: Any, *order: Any) -> Expr:
        """The same tensor with its indices in another order."""
        return algebra.transpose(self, order)

    def split(self: Any, index: Any, parts: tuple[Index, ...]) -> Expr:
        """See one index as several, the first varying slowest; sizes must multiply out."""
        return algebra.split(self, index, parts)

    def merge(self: Any, parts: tuple[Any, ...], into: Index) -> Expr:
        """See several indices as one, the first varying slowest; sizes must multiply out."""
        return algebra.merge(self, parts, into)

    def select(self: Any, index: Any, position: int) -> Expr:
        """The tensor at one position of an index; the index is gone."""
        return algebra.select(self, index, position)

    def slice(self: Any, index: Any, start: Size, stop: Size) -> Expr:
        """Positions start … stop - 1 of an index, which keeps its name."""
        return algebra.slice_index(self, index, start, stop)

    def pad(self: Any, index: Any, before: Size, after: Size) -> Expr:
        """Zeros around an index, which keeps its name."""
        return algebra.pad(self, index, before, after)

    def window(
        self: Any,
        index: Any,
        *,
        out: Index,
        kernel: Index,
        stride: int = 1,
        dilation: int = 1,
        padding: Any = 0,
    ) -> Expr:
        """An index seen through windows: index = out·stride + kernel·dilation - padding.

        Zeros lie around the index; ``padding`` is an int, a pair, "same" or "valid". The size of
        `out` follows. Nothing is copied: contracted with a kernel it is a convolution.
        """
        from tncompiler.ir.windowing import windowed

        return windowed(
            self,
            index,
            out=out,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=padding,
        )

    def gather(self: Any, over: Any, ids: Any) -> Expr:
        """The tensor at integer positions of an index: see `tnc.gather`."""
        from tncompiler.ir.gather_nodes import gather

        return gather(self, over, ids)

    def scatter_add(self: Any, ids: Any, into: Index, over: Any = None) -> Expr:
        """Sums by integer position, the adjoint of `gather`: see `tnc.scatter_add`."""
        from tncompiler.ir.gather_nodes import scatter_add

        return scatter_add(self, ids, into, over)

    def scatter_max(self: Any, ids: Any, into: Index, over: Any = None) -> Expr:
        """The largest by integer position: see `tnc.scatter_max`."""
        from tncompiler.ir.gather_nodes import scatter_max

        return scatter_max(self, ids, into, over)

    def conj(self: Any) -> Expr:
        """Complex conjugate."""
        return algebra.elementwise("conj", self)

    @property
    def real(self: Any) -> Expr:
        """Real part."""
        return algebra.elementwise("real", self)

    @property
    def imag(self: Any) -> Expr:
        """Imaginary part."""
        return algebra.elementwise("imag", self)

    def abs(self: Any) -> Expr:
        """Absolute value; its gradient at 0 is 0."""
        return algebra.elementwise("abs", self)

    __abs__ = abs

    def astype(self: Any, dtype: object) -> Expr:
        """The same values in another dtype."""
        return algebra.cast(self, dtype)

    def replace(self: Any, leaf: Expr, by: Expr) -> Expr:
        """The expression with a leaf (this use of it) replaced by an expression."""
        return algebra.replace(self, leaf, by)

    def to_text(self: Any) -> str:
        """One line a node, operands before users; for people."""
        from tncompiler.ir.expressions import to_text

        return to_text(self)

    def to_json(self: Any) -> str:
        """The expression as JSON text that `tnc.from_json` reads."""
        from tncompiler.ir.serialize import to_json

        return to_json(self)

    def to_einsum(self: Any) -> Any:
        """The equation of a contraction of leaves: a str with the leaves as `.operands`."""
        from tncompiler.ir.interchange.equations import to_einsum

        return to_einsum(self)

    def to_networkx(self: Any) -> Any:
        """The graph of a contraction of leaves: nodes are tensors and indices, edges are axes."""
        from tncompiler.ir.interchange.graphs import to_networkx

        return to_networkx(self)

    def _repr_svg_(self: Any) -> str | None:
        """The networks as a picture, for notebooks."""
        from tncompiler.draw.notebook import expression_svg

        return expression_svg(self)
