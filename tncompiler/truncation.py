"""Make a bond of a network smaller by what matters least: `tnc.compress`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError, UnknownIndex
from tncompiler.ir.expressions import Contract, Expr
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.pairs import leading
from tncompiler.ir.program import fresh_name
from tncompiler.ir.sizes import product


def compress(
    expr: Expr, bond: Any, *, max_bond: int | None = None, cutoff: float | None = None
) -> Expr:
    """The network with one bond truncated to its largest singular values; it stays a network.

    ``bond``: an index that the network sums and that alone holds two parts of it together, or a
    tuple of those that do so together (as where an operator has been applied to a state). Indices
    that are open in both parts, a batch say, are kept apart: each position is truncated on its own.
    ``max_bond`` is the size afterwards; singular values of at most `cutoff` times the largest count
    as zero (the size does not depend on them). Nothing dense is made: the cost is that of the Gram
    matrices of both parts, networks themselves, and of their eigenvalues, done in double precision;
    singular values below about 1e-6 of the largest (1e-3 if the network is float32) are lost.
    Gradients in reverse mode are finite at equal singular values; jvp and second derivatives raise
    GradientError.
    Raises: UnknownIndex for an index that the network does not sum; ArgumentError if it does not
    fall into two parts, or nothing says how far to truncate; DTypeError for complex numbers.
    """
    network = algebra.as_expr(expr)
    names = (bond,) if isinstance(bond, Index | str) else tuple(bond)
    if not isinstance(network, Contract):
        raise _refused("the expression is no contraction", "compress what tnc.contract gives")
    bonds = tuple(_bond(network, name) for name in names)
    size = _size(bonds, max_bond, cutoff)
    left, right = _parts(network, bonds)
    if size >= product(index.size for index in bonds) and not cutoff:
        return network
    return _truncated(network, left, right, bonds, size, float(cutoff or 0.0))


def _refused(what: str, fix: str) -> ArgumentError:
    return ArgumentError(f"compress: {what}", where=call_site(), fix=fix)


def _bond(network: Contract, key: Any) -> Index:
    bound = {i for term in network.terms for i in term.indices} - set(network.indices)
    for index in bound:
        if key in (index, index.name):
            return index
    raise UnknownIndex(
        f"the network sums no index {getattr(key, 'name', key)!r}",
        where=call_site(),
        fix=f"it sums: {', '.join(sorted(index.name for index in bound)) or 'none'}",
    )


def _size(bonds: Sequence[Index], max_bond: int | None, cutoff: float | None) -> int:
    whole = product(index.size for index in bonds)
    if not isinstance(whole, int):
        raise _refused("the size of the bond is a symbol", "declare the bond with a size")
    if max_bond is None and cutoff is None:
        raise _refused("nothing says how far to truncate", "give max_bond= or cutoff=")
    if max_bond is not None and (not isinstance(max_bond, int) or max_bond < 1):
        raise _refused(f"max_bond is {max_bond!r:.40}", "give a whole number of at least 1")
    if cutoff is not None and not 0 <= cutoff < 1:
        raise _refused(f"cutoff is {cutoff!r:.40}", "give a number from 0 to below 1")
    return whole if max_bond is None else min(max_bond, whole)


def _parts(network: Contract, bonds: Sequence[Index]) -> tuple[list[Expr], list[Expr]]:
    """The factors on each side of the bond."""
    joints = set(bonds) | set(network.indices)
    parts: list[tuple[set[Index], list[Expr]]] = []
    for term in network.terms:
        inner = set(term.indices) - joints
        touching = [part for part in parts if part[0] & inner]
        merged = (
            inner.union(*(part[0] for part in touching)),
            [
                *(t for part in touching for t in part[1]),
                term,
            ],
        )
        parts = [part for part in parts if part not in touching] + [merged]
    carrying = [p for p in parts if any(set(t.indices) & set(bonds) for t in p[1])]
    whole = all(set(bonds) <= {i for t in p[1] for i in t.indices} for p in carrying)
    if len(carrying) != 2 or not whole:
        raise _refused(
            f"cut at {', '.join(index.name for index in bonds)}, the network has {len(carrying)} "
            "parts that carry it",
            "name an index, or a tuple of all of them, that holds two parts together",
        )
    rest = [term for part in parts if part not in carrying for term in part[1]]
    return [*carrying[0][1]], [*carrying[1][1], *rest]


def _truncated(
    network: Contract,
    left: list[Expr],
    right: list[Expr],
    bonds: tuple[Index, ...],
    size: int,
    cutoff: float,
) -> Expr:
    taken = {i.name for term in network.terms for i in term.indices} | {
        i.name for i in network.indices
    }

    def fresh(name: str, extent: Any) -> Index:
        found = Index(fresh_name(name, taken), extent)
        taken.add(found.name)
        return found

    ends = [{i for term in part for i in term.indices} for part in (left, right)]
    batch = tuple(i for i in network.indices if i in ends[0] and i in ends[1])
    whole = product(index.size for index in bonds)
    row, column = fresh("row", whole), fresh("column", whole)
    twins = tuple(fresh(index.name, index.size) for index in bonds)
    squares = [_gram(part, network.indices, batch, bonds, twins, fresh) for part in (left, right)]
    grams = [square.merge(bonds, row).merge(twins, column) for square in squares]
    kept = fresh(bonds[0].name, size)
    pairs = leading(grams[0], grams[1], kept, cutoff)
    onward = tuple(fresh(index.name, index.size) for index in bonds)
    into = pairs.split(row, bonds)
    back = algebra.contract(pairs, grams[0], out=(*batch, kept, column)).split(column, onward)
    changes = dict(zip(bonds, onward, strict=True))
    moved = [algebra.reindex(t, [changes.get(i, i) for i in t.indices]) for t in right]
    return algebra.contract(*left, into, back, *moved, out=network.indices)


def _gram(
    part: Sequence[Expr],
    opened: Sequence[Index],
    batch: Sequence[Index],
    bonds: tuple[Index, ...],
    twins: tuple[Index, ...],
    fresh: Any,
) -> Expr:
    """The part contracted with itself over all but the batch and the bond."""
    bound = dict.fromkeys(i for term in part for i in term.indices)
    changes = dict(zip(bonds, twins, strict=True))
    for index in bound:
        if index not in opened and index not in changes:
            changes[index] = fresh(index.name, index.size)
    copies = [algebra.reindex(t, [changes.get(i, i) for i in t.indices]) for t in part]
    return algebra.contract(*part, *copies, out=(*batch, *bonds, *twins))
