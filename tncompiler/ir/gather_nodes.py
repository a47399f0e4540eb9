"""Expressions that read or add at positions given by an integer tensor, and their constructors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir import algebra
from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import ArgumentError, DTypeError, IndexMismatch
from tncompiler.ir.expressions import Expr, wiring
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import fresh_name
from tncompiler.ir.scope import (
    axis_of,
    check_indices,
    check_scope,
    check_unique,
    describe,
    find_all,
)
from tncompiler.ir.sizes import product, size_text

NAMES = {"sum": "add", "max": "max"}  # of what a Scatter does: scatter_add, scatter_max


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gather(Expr):
    """`source` at the positions `ids` along axis `axis`, which the new indices of ids replace.

    Indices that both have run together: x(b, v) gathered along v by ids(b) has the index b.
    """

    source: Expr
    ids: Expr
    axis: int

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source, self.ids)

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"source": operands[0], "ids": operands[1]}

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, *wiring(self.operands, ()))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scatter(Expr):
    """`source` added up at the positions `ids` along a new index, which is axis `axis`.

    ``summed``: which axes of ids are summed; those of source stand together, in this order, where
    the new index comes. All other indices of ids are kept. ``function``: "sum", or "max" where the
    largest is taken instead.
    """

    source: Expr
    ids: Expr
    axis: int
    summed: tuple[int, ...]
    function: str = "sum"

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source, self.ids)

    @property
    def into(self) -> Index:
        """The index that the positions are of."""
        return self.indices[self.axis]

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"source": operands[0], "ids": operands[1]}

    def _positional(self) -> tuple[object, ...]:
        size = size_text(self.into.size)
        return (self.function, self.axis, self.summed, size, *wiring(self.operands, ()))


def gather(table: Any, over: Any, ids: Any) -> Expr:
    """The table at positions of an index: the new indices of ids take the place of `over`.

    Shapes: table(…, over, …) and ids(a, b) give (…, a, b, …); an index that table and ids share is
    kept once, and both run along it: logits(t, v) by targets(t) gives (t).
    Where `over` is a tuple of indices, the ids are numbers in their mixed radix, the first index
    slowest. A network of cores is then never contracted as a whole: each core is read at its own
    digit, and what is read is contracted for each id.
    Raises: PositionError in the call, for an id outside the index; DTypeError for ids that are no
    integers.
    """
    source, at = algebra.as_expr(table), _checked_ids(ids)
    if isinstance(over, tuple | list):
        return _gather_digits(source, find_all(source, over), at)
    axis = axis_of(source, over)
    return _gather_axis(source, axis, at)


def _gather_axis(source: Expr, axis: int, ids: Expr) -> Expr:
    rest = (*source.indices[:axis], *source.indices[axis + 1 :])
    check_scope([(describe(source), rest), (describe(ids), ids.indices)])
    new = tuple(index for index in ids.indices if index not in rest)
    return Gather((*source.indices[:axis], *new, *source.indices[axis + 1 :]), source, ids, axis)


def _gather_digits(source: Expr, over: Sequence[Index], ids: Expr) -> Expr:
    """Every factor of a network read at its own digits; anything else along one merged index."""
    if not over:
        raise ArgumentError(
            "gather over no index", where=call_site(), fix="name the index that ids number"
        )
    digits = _digits(over, ids)
    if not isinstance(source, ex.Contract):
        for index, digit in zip(over, digits, strict=True):
            source = _gather_axis(source, source.indices.index(index), digit)
        return source
    terms = []
    for term in _without_names(source, ids.indices):
        for index, digit in zip(over, digits, strict=True):
            if index in term.indices:
                term = _gather_axis(term, term.indices.index(index), digit)
        terms.append(term)
    first = source.indices.index(over[0])
    new = [i for i in ids.indices if i not in source.indices or i in over]
    before = [i for i in source.indices[:first] if i not in over]
    after = [i for i in source.indices[first:] if i not in over]
    return algebra.contract(*terms, out=(*before, *new, *after))


def _without_names(network: ex.Contract, others: Sequence[Index]) -> list[Expr]:
    """The factors of a network, their bound indices called otherwise than any of `others`."""
    union = dict.fromkeys(index for term in network.terms for index in term.indices)
    taken = {index.name for index in (*union, *others)}
    changes: dict[Index, Index] = {}
    for index in union:
        if index not in network.indices and any(index.name == other.name for other in others):
            name = fresh_name(index.name, taken)
            taken.add(name)
            changes[index] = Index(name, index.size)
    return [
        algebra.reindex(term, [changes.get(index, index) for index in term.indices])
        for term in network.terms
    ]


def _digits(over: Sequence[Index], ids: Expr) -> list[Expr]:
    """The digits of ids in the mixed radix of some indices, the first index slowest.

    The first digit is all that is left, so that an id out of range is a position out of range.
    """
    digits = []
    for position in range(len(over)):
        stride = product(index.size for index in over[position + 1 :])
        digit = algebra.elementwise("floordiv", ids, stride) if position + 1 < len(over) else ids
        if position:
            digit = algebra.elementwise("mod", digit, over[position].size)
        digits.append(digit)
    return digits


def scatter_add(values: Any, ids: Any, into: Index, over: Any = None) -> Expr:
    """Sums of values by position: what `gather` reads, added back where it came from.

    Shapes: values(…, e, …) at ids(e) give (…, into, …), where position n holds the sum of all
    values whose id is n, zero if there is none. ``over``: the indices of ids that are summed (the
    default is all); others are kept, and each of their positions has sums of its own. Summed over
    none, each value is put where its id says, along a new first index.
    Raises: PositionError in the call, for an id outside `into`; DTypeError for ids that are no
    integers; IndexMismatch if values lack an index of ids.
    """
    return _scattered("sum", values, ids, into, over)


def scatter_max(values: Any, ids: Any, into: Index, over: Any = None) -> Expr:
    """The largest of the values at each position, where `scatter_add` adds them up.

    Shapes, errors and ``over`` are as there. A position that no id names holds 0. The gradient of a
    position goes to the largest value in equal parts where several are the largest, as that of
    `max` does.
    """
    return _scattered("max", values, ids, into, over)


def _scattered(function: str, values: Any, ids: Any, into: Index, over: Any) -> Expr:
    source, at = algebra.as_expr(values), _checked_ids(ids)
    check_indices((into,), f"scatter_{NAMES[function]}")
    keys = (over,) if isinstance(over, Index | str) else over
    summed = at.indices if keys is None else find_all(at, keys)
    places = [k for k, index in enumerate(source.indices) if index in summed]
    return scatter_at(source, at, into, summed, min(places, default=0), function)


def scatter_at(
    source: Expr,
    ids: Expr,
    into: Index,
    summed: Sequence[Index],
    axis: int,
    function: str = "sum",
) -> Expr:
    """`scatter_add` or `scatter_max` with the new index at position `axis` of the result."""
    name = f"scatter_{NAMES[function]}"
    missing = [index.name for index in ids.indices if index not in source.indices]
    if missing:
        raise IndexMismatch(
            f"{describe(source)} has no index {missing[0]!r}, which the ids have",
            where=call_site(),
            fix=f"widen it with * tnc.ones({missing[0]})",
        )
    summed = [index for index in ids.indices if index in summed]
    kept = [index for index in source.indices if index not in summed]
    before, after = kept[:axis], kept[axis:]
    indices = (*before, into, *after)
    check_unique(indices, name)
    check_scope([(name, indices)])
    laid = algebra.transpose(source, (*before, *summed, *after))
    axes = tuple(ids.indices.index(index) for index in summed)
    return Scatter(indices, laid, ids, axis, axes, function)


def _checked_ids(ids: Any) -> Expr:
    """The ids as an expression; a leaf that is certainly no integer is refused where it stands."""
    at = algebra.as_expr(ids)
    if isinstance(at, ex.Leaf):
        check_integers(at.dtype, describe(at))
    return at


def check_integers(dtype: str, owner: str) -> None:
    """Raises DTypeError unless a dtype holds positions."""
    if dtype.lstrip("u").startswith("int"):
        return
    raise DTypeError(
        f"the ids {owner} have dtype {dtype}, and positions are integers",
        where=call_site(),
        fix="declare them with dtype='int64'",
    )
