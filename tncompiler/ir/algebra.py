"""Checked constructors of expression nodes: what comes out is valid, what cannot be is refused.

Every rule of size and order in the language is enforced here, those of names in `scope`.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy

from tncompiler.ir import expressions as ex
from tncompiler.ir.dtypes import DEFAULT, dtype_name, is_real
from tncompiler.ir.errors import (
    ArgumentError,
    BadSize,
    DTypeError,
    IndexMismatch,
    NoCommonIndex,
    PositionError,
    RepeatedOutputIndex,
    ShapeError,
    SizeClash,
    SizeEquationError,
    UnknownOutputIndex,
)
from tncompiler.ir.expressions import Expr, Initializer, Leaf
from tncompiler.ir.functions import function
from tncompiler.ir.index import Index
from tncompiler.ir.names import check_leaf_name
from tncompiler.ir.origin import call_site
from tncompiler.ir.scope import (
    axis_of,
    check_indices,
    check_key,
    check_scope,
    check_unique,
    describe,
    find,
    find_all,
    shown,
)
from tncompiler.ir.sizes import Size, as_size, product, render_size, symbols_of

# ---------------------------------------------------------------------------- leaves


def leaf(
    name: str,
    axes: Sequence[Index],
    *,
    kind: str,
    dtype: object = None,
    init: Initializer | None = None,
    value: Any = None,
) -> Leaf:
    """An input, parameter or constant with one axis per index."""
    check_leaf_name(name)
    check_indices(axes, name)
    if value is not None:
        value = _frozen_value(name, value, axes)
        if dtype is None and value.dtype.kind != "f":  # floats take the dtype of the rest
            dtype = value.dtype
    if isinstance(init, np.ndarray):
        init = _frozen_value(name, init, axes)
    own = dtype_name(DEFAULT if dtype is None else dtype, f"{kind} {name!r}")
    for array in (value, init):
        if isinstance(array, np.ndarray) and array.dtype.kind == "c" and is_real(own):
            raise DTypeError(
                f"{kind} {name!r} is {own}, but its value is complex",
                where=call_site(),
                fix="declare a complex dtype, or take the real part",
            )
    return Leaf(tuple(axes), name, kind, own, init, value)


def _frozen_value(name: str, value: Any, axes: Sequence[Index]) -> np.ndarray:
    try:
        array = np.array(value)  # a copy: nobody can change the expression from outside
    except ValueError as error:
        raise ShapeError(
            f"the value of {name!r} is no array: {str(error)[:80]}",
            where=call_site(),
            fix="give rows of one length",
        ) from None
    sizes = tuple(index.size for index in axes)
    if array.ndim != len(sizes) or any(
        isinstance(size, int) and size != n for size, n in zip(sizes, array.shape, strict=False)
    ):
        wanted = ", ".join(map(str, axes))
        raise ShapeError(
            f"the value of {name!r} has shape {array.shape}, but its indices are ({wanted})",
            where=call_site(),
            fix="give an array with one axis per index, of the same sizes",
        )
    dtype_name(array.dtype, f"the value of {name!r}")
    array.flags.writeable = False
    return array


def delta(*axes: Index) -> Expr:
    """1 where all indices are equal, else 0. One index gives ones."""
    check_indices(axes, "delta")
    if not axes:
        raise ArgumentError(
            "delta needs at least one index", where=call_site(), fix="write tnc.delta(i, j)"
        )
    for axis in axes[1:]:
        if axis.size != axes[0].size:
            raise SizeClash(
                f"delta joins index {axes[0].name!r} of size {render_size(axes[0].size)} and index "
                f"{axis.name!r} of size {render_size(axis.size)}",
                where=call_site(),
                fix="give both the same size",
            )
    return ex.Delta(tuple(axes)) if len(axes) > 1 else ex.Ones(tuple(axes))


def ones(*axes: Index) -> Expr:
    """1 everywhere; widens an operand explicitly: `a * tnc.ones(k)`."""
    check_indices(axes, "ones")
    return ex.Ones(tuple(axes)) if axes else ex.Literal((), 1)


def as_expr(value: Any) -> Expr:
    """An operand: an expression, a number, or a size used as a number."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, sympy.Expr) and value.is_integer:
        return ex.Literal((), as_size(value))
    if isinstance(value, bool | np.bool_):
        return ex.Literal((), int(value))
    if isinstance(value, numbers.Number) or (isinstance(value, np.ndarray) and value.ndim == 0):
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, int | float | complex):
            return ex.Literal((), number)
    raise ArgumentError(
        f"an operand is a {type(value).__name__}, which is no expression and no number",
        where=call_site(),
        fix="declare arrays with tnc.input, tnc.param or tnc.constant(name, *indices, value=…)",
    )


# ---------------------------------------------------------------------------- products and sums


def _operands(values: Iterable[Any]) -> tuple[Expr, ...]:
    operands = tuple(as_expr(value) for value in values)
    check_scope((describe(op), op.indices) for op in operands)
    return operands


def _union(operands: Iterable[Expr]) -> tuple[Index, ...]:
    return tuple(dict.fromkeys(index for op in operands for index in op.indices))


def contract(*tensors: Any, out: Iterable[Any] | None = None) -> Expr:
    """The sum of products of `tensors` over every index not in `out`.

    Without `out` the indices that occur exactly once are kept, in order of first appearance.
    Raises: SizeClash; UnknownOutputIndex or RepeatedOutputIndex for `out`.
    """
    terms = _operands(tensors)
    union = _union(terms)
    if out is None:
        count: dict[Index, int] = {}
        for term in terms:
            for index in term.indices:
                count[index] = count.get(index, 0) + 1
        kept = tuple(index for index in union if count[index] == 1)
    else:
        keys = (out,) if isinstance(out, Index | str) else out
        kept = tuple(_output_index(key, union) for key in keys)
        check_unique(kept, "out", RepeatedOutputIndex)
    return _contraction(terms, kept)


def _output_index(key: Any, union: Sequence[Index]) -> Index:
    check_key(key)
    for index in union:
        if index == key or index.name == key:
            return index
    have = ", ".join(index.name for index in union) or "none"
    raise UnknownOutputIndex(
        f"no operand has the output index {shown(key)!r}",
        where=call_site(),
        fix=f"choose among {have}, or widen with a factor tnc.ones(…)",
    )


def _contraction(terms: tuple[Expr, ...], out: tuple[Index, ...]) -> Expr:
    if len(terms) == 1 and terms[0].indices == out:
        return terms[0]
    if not terms:
        return ex.Literal((), 1)
    return ex.Contract(out, terms)


def multiply(a: Any, b: Any) -> Expr:
    """The product, aligned by index; indices of both, an outer product where none is shared."""
    terms = _operands((a, b))
    return _contraction(terms, _union(terms))


def matmul(a: Any, b: Any) -> Expr:
    """Contract every index that both have. Raises NoCommonIndex if there is none."""
    left, right = _operands((a, b))
    shared = set(left.indices) & set(right.indices)
    if not shared:
        raise NoCommonIndex(
            f"{describe(left)} and {describe(right)} have no index in common",
            where=call_site(),
            fix="use * for an outer product, or rename an index",
        )
    return _contraction((left, right), tuple(i for i in _union((left, right)) if i not in shared))


def sum_over(expr: Expr, over: Sequence[Any]) -> Expr:
    """The sum over some indices, or over all."""
    bound = set(find_all(expr, over) or expr.indices)
    return _contraction((expr,), tuple(i for i in expr.indices if i not in bound))


def mean(expr: Expr, over: Sequence[Any]) -> Expr:
    """The mean over some indices, or over all."""
    bound = find_all(expr, over) or expr.indices
    count = product(index.size for index in bound)
    return elementwise("div", sum_over(expr, bound), ex.Literal((), count))


def reduce_over(name: str, expr: Expr, over: Sequence[Any]) -> Expr:
    """A max or min over some indices, or over all."""
    bound = find_all(expr, over) or expr.indices
    if not bound:
        return expr
    kept = tuple(i for i in expr.indices if i not in bound)
    return ex.Reduce(kept, name, expr, tuple(i for i in expr.indices if i in bound))


# ---------------------------------------------------------------------------- maps


def elementwise(name: str, *values: Any) -> Expr:
    """An elementwise function of operands aligned by index.

    Except for "div", one operand must have all indices of the others.
    """
    rule = function(name)
    if len(values) != rule.arity:
        raise ArgumentError(
            f"{name} takes {rule.arity} operands but got {len(values)}",
            where=call_site(),
            fix=f"give {rule.arity}",
        )
    arguments = _operands(values)
    union = _union(arguments)
    if name != "div" and not any(len(arg.indices) == len(union) for arg in arguments):
        sets = " and ".join(f"({', '.join(i.name for i in a.indices)})" for a in arguments)
        raise IndexMismatch(
            f"{name}: no operand has all indices of the others: {sets}",
            where=call_site(),
            fix="widen one explicitly with * tnc.ones(…)",
        )
    return ex.Map(union, name, arguments)


def power(base: Expr, exponent: Any) -> Expr:
    """base ** exponent; small whole exponents are products."""
    if isinstance(exponent, int) and 0 <= exponent <= 3:
        terms = (base,) * exponent
        return _contraction(terms, base.indices) if terms else ones(*base.indices)
    if not isinstance(exponent, numbers.Real):
        raise ArgumentError(
            f"the exponent {exponent!r:.40} is no real number",
            where=call_site(),
            fix="use tnc.exp and tnc.log",
        )
    return elementwise("pow", base, exponent)


def cast(expr: Expr, dtype: object) -> Expr:
    """The same values in another dtype."""
    name = dtype_name(dtype)
    if name == DEFAULT:
        raise DTypeError(
            "'default' is no dtype to cast to", where=call_site(), fix="name one, as 'float32'"
        )
    return ex.Cast(expr.indices, expr, name)


# ---------------------------------------------------------------------------- re-indexing


def reindex(expr: Expr, indices: Sequence[Index]) -> Expr:
    """The same tensor with its axes called `indices`, by position."""
    check_indices(indices, describe(expr))
    if len(indices) != expr.ndim:
        raise ArgumentError(
            f"{describe(expr)} has {expr.ndim} axes but {len(indices)} indices are given",
            where=call_site(),
            fix=f"it has the indices ({', '.join(map(str, expr.indices))})",
        )
    for axis, (old, new) in enumerate(zip(expr.indices, indices, strict=True)):
        if old.size != new.size:
            raise SizeClash(
                f"axis {axis} of {describe(expr)} has size {render_size(old.size)} but index "
                f"{new.name!r} has size {render_size(new.size)}",
                where=call_site(),
                fix="use an index of the same size",
            )
    return _relabel(expr, tuple(indices))


def _relabel(expr: Expr, indices: tuple[Index, ...]) -> Expr:
    if indices == expr.indices:
        return expr
    if isinstance(expr, Leaf):
        return Leaf(indices, expr.name, expr.kind, expr.dtype, expr.init, expr.value)
    return ex.Reindex(indices, expr, tuple(range(expr.ndim)))


def rename(expr: Expr, names: Mapping[Any, Index]) -> Expr:
    """Call some indices otherwise. Raises RepeatedIndex onto an index already present."""
    if not isinstance(names, Mapping):
        raise ArgumentError(
            f"rename takes a dict, not {names!r:.40}",
            where=call_site(),
            fix="write t.rename({i: j})",
        )
    changes = {find(expr, old): new for old, new in names.items()}
    return reindex(expr, tuple(changes.get(index, index) for index in expr.indices))


def transpose(expr: Expr, order: Sequence[Any]) -> Expr:
    """The same tensor with its indices in another order; all must be named."""
    wanted = find_all(expr, order)
    if len(wanted) != expr.ndim:
        missing = [index.name for index in expr.indices if index not in wanted]
        raise ArgumentError(
            f"transpose leaves out {', '.join(missing)}", where=call_site(), fix="name every index"
        )
    return permute(expr, tuple(expr.indices.index(index) for index in wanted))


def permute(expr: Expr, axes: tuple[int, ...]) -> Expr:
    """The same tensor with axis `axes[k]` at position k."""
    if axes == tuple(range(expr.ndim)):
        return expr
    return ex.Reindex(tuple(expr.indices[axis] for axis in axes), expr, axes)


def split(expr: Expr, index: Any, parts: Sequence[Index]) -> Expr:
    """See one index as several, the first varying slowest."""
    axis = axis_of(expr, index)
    check_indices(parts, "split")
    if not parts:
        raise ArgumentError(
            "split needs at least one part", where=call_site(), fix="give a tuple of indices"
        )
    _check_product(expr.shape[axis], [p.size for p in parts], f"split of {shown(index)!r}")
    indices = (*expr.indices[:axis], *parts, *expr.indices[axis + 1 :])
    _check_free(indices, "split")
    return ex.Split(indices, expr, axis, tuple(parts))


def merge(expr: Expr, parts: Sequence[Any], into: Index) -> Expr:
    """See several indices as one, placed where the first of `parts` is."""
    merged = find_all(expr, parts)
    check_indices((into,), "merge")
    if not merged:
        raise ArgumentError(
            "merge needs at least one index", where=call_site(), fix="give a tuple of indices"
        )
    _check_product(into.size, [p.size for p in merged], f"merge into {into.name!r}")
    first = expr.indices.index(merged[0])
    before = [i for i in expr.indices[:first] if i not in merged]
    after = [i for i in expr.indices[first:] if i not in merged]
    together = transpose(expr, (*before, *merged, *after))
    indices = (*before, into, *after)
    _check_free(indices, "merge")
    return ex.Merge(indices, together, len(before), len(merged), into)


def _check_free(indices: Sequence[Index], owner: str) -> None:
    check_unique(indices, owner)
    check_scope([(owner, indices)])


def _check_product(total: Size, parts: Sequence[Size], owner: str) -> None:
    """Refuse sizes that certainly do not multiply out; what is unknown is solved when bound."""
    whole = product(parts)
    if isinstance(total, int) and isinstance(whole, int) and total != whole:
        shown = " * ".join(map(render_size, parts))
        raise SizeEquationError(
            f"{owner}: {render_size(total)} is not {shown} = {whole}",
            where=call_site(),
            fix="give sizes that multiply out",
        )


def _position(size: Size, value: Any, what: str) -> Size:
    """A position along an axis; negative ones count from the end."""
    if isinstance(value, sympy.Expr) and not isinstance(value, sympy.Integer):
        return value
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(
            f"{what} is {value!r:.40}", where=call_site(), fix="give an integer or a size"
        ) from None
    return size + number if number < 0 else number


def slice_index(expr: Expr, index: Any, start: Any, stop: Any) -> Expr:
    """Positions start … stop - 1 of an index, which keeps its name and gets the new size."""
    axis = axis_of(expr, index)
    size = expr.shape[axis]
    first = _position(size, 0 if start is None else start, "start")
    last = size if stop is None else _position(size, stop, "stop")
    numbers_known = all(isinstance(value, int) for value in (first, last))
    if (numbers_known and not 0 <= first <= last) or (
        isinstance(size, int) and isinstance(last, int) and last > size
    ):
        raise PositionError(
            f"positions {render_size(first)} to {render_size(last)} do not lie in index "
            f"{shown(index)!r} of size {render_size(size)}",
            where=call_site(),
            fix="0 <= start <= stop <= size",
        )
    if first == 0 and last == size:
        return expr
    return ex.Slice(_resized(expr, axis, last - first), expr, axis, first, last)


def select(expr: Expr, index: Any, position: Any) -> Expr:
    """The tensor at one position of an index; the index is gone."""
    axis = axis_of(expr, index)
    first = _position(expr.shape[axis], position, "position")
    piece = slice_index(expr, index, first, first + 1)
    kept = (*expr.indices[:axis], *expr.indices[axis + 1 :])
    return _contraction((piece,), kept)


def pad(expr: Expr, index: Any, before: Any, after: Any) -> Expr:
    """Zeros around an index, which keeps its name and gets the new size."""
    axis = axis_of(expr, index)
    low, high = as_size(before, "before"), as_size(after, "after")
    if low == 0 and high == 0:
        return expr
    return ex.Pad(_resized(expr, axis, expr.shape[axis] + low + high), expr, axis, low, high)


def _resized(expr: Expr, axis: int, size: Size) -> tuple[Index, ...]:
    if not isinstance(size, int):
        size = int(size) if size.is_Integer else size
    if not isinstance(size, int) and (size.is_negative or not size.is_integer):
        raise BadSize(f"a size would be {size}", where=call_site(), fix="check start and stop")
    index = Index(expr.indices[axis].name, size)
    return (*expr.indices[:axis], index, *expr.indices[axis + 1 :])


def concat(parts: Sequence[Any], index: Index) -> Expr:
    """Tensors one after the other along the axis they each call by `index`'s name."""
    check_indices((index,), "concat")
    tensors = tuple(as_expr(part) for part in parts)
    if not tensors:
        raise ArgumentError(
            "concat needs at least one tensor", where=call_site(), fix="give a list of expressions"
        )
    axis = axis_of(tensors[0], index.name)
    rest = [i for i in tensors[0].indices if i.name != index.name]
    aligned = []
    for tensor in tensors:
        own = find(tensor, index.name)
        if set(tensor.indices) - {own} != set(rest):
            raise SizeClash(
                f"{describe(tensor)} and {describe(tensors[0])} differ in more than index "
                f"{index.name!r}",
                where=call_site(),
                fix="all tensors need the same other indices",
            )
        aligned.append(transpose(tensor, (*rest[:axis], own, *rest[axis:])))
    total = sum((tensor.shape[axis] for tensor in aligned), start=0)
    total = int(total) if isinstance(total, sympy.Integer) else total
    if not symbols_of(index.size) and index.size != total:
        raise SizeClash(
            f"the tensors have {render_size(total)} positions along {index.name!r}, not "
            f"{render_size(index.size)}",
            where=call_site(),
            fix=f"use tnc.Index({index.name!r}, {render_size(total)})",
        )
    return _concatenation(tuple(aligned), axis, Index(index.name, total))


def _concatenation(parts: tuple[Expr, ...], axis: int, index: Index) -> Expr:
    if len(parts) == 1:
        return parts[0]
    indices = parts[0].indices
    return ex.Concat((*indices[:axis], index, *indices[axis + 1 :]), parts, axis)


def stack(parts: Sequence[Any], index: Index) -> Expr:
    """Tensors of the same indices side by side along a new first index."""
    check_indices((index,), "stack")
    tensors = tuple(as_expr(part) for part in parts)
    single = Index(index.name, 1)
    widened = [multiply(ones(single), tensor) for tensor in tensors]
    return concat(widened, index)


# ---------------------------------------------------------------------------- whole expressions


def replace(expr: Expr, old: Expr, new: Any) -> Expr:
    """The expression with one use of a leaf replaced by an expression of the same indices."""
    if not isinstance(old, Leaf):
        raise ArgumentError(
            f"only leaves can be replaced, not {old!r:.80}",
            where=call_site(),
            fix="name an input, param or constant",
        )
    by = as_expr(new)
    if set(by.indices) != set(old.indices):
        raise SizeClash(
            f"{old.name!r} has the indices ({', '.join(map(str, old.indices))}) but its "
            f"replacement has ({', '.join(map(str, by.indices))})",
            where=call_site(),
            fix="both need the same indices",
        )
    return ex.replace_leaves(expr, {old: transpose(by, old.indices)})
