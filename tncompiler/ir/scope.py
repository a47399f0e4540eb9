"""The rules of names in one scope: which index a key means, one size per name, no repetition.

Every check refuses with what is wrong, where it was written, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from tncompiler.ir.errors import ArgumentError, RepeatedIndex, SizeClash, UnknownIndex
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import render_size


def check_indices(axes: Sequence[Any], owner: str) -> None:
    for axis in axes:
        if not isinstance(axis, Index):
            raise ArgumentError(
                f"{owner}: {axis!r} is no index",
                where=call_site(),
                fix="make indices with tnc.indices('i j') or tnc.Index('i', 4)",
            )
    check_scope([(owner, axes)])
    check_unique(axes, owner)


def check_unique(
    axes: Sequence[Index], owner: str, kind: type[RepeatedIndex] = RepeatedIndex
) -> None:
    for position, axis in enumerate(axes):
        if axis in axes[:position]:
            raise kind(
                f"{owner} names index {axis.name!r} twice",
                where=call_site(),
                fix="name each index once; for a diagonal or trace use "
                "tnc.contract(A, tnc.delta(i, j), out=…)",
            )


def describe(expr: Expr) -> str:
    """How an error calls an operand."""
    return expr.name if isinstance(expr, Leaf) else f"the {type(expr).__name__} at {expr.origin}"


def check_scope(owners: Iterable[tuple[str, Sequence[Index]]]) -> None:
    """Refuse one name with two sizes among indices that are free side by side."""
    seen: dict[str, tuple[Index, str, int]] = {}
    for owner, axes in owners:
        for position, index in enumerate(axes):
            first, where, axis = seen.setdefault(index.name, (index, owner, position))
            if first.size != index.size:
                raise SizeClash(
                    f"index {index.name!r} has size {render_size(first.size)} on {where} "
                    f"(axis {axis}) but size {render_size(index.size)} on {owner} "
                    f"(axis {position})",
                    where=f"the expression defined at {call_site()}",
                    fix="give both the same size, or rename one of them",
                )


def shown(key: Any) -> str:
    """How an error calls an index."""
    return key.name if isinstance(key, Index) else str(key)


def find(expr: Expr, key: Any) -> Index:
    """The free index that `key` (an Index or a name) means. Raises UnknownIndex."""
    check_key(key)
    for index in expr.indices:
        if index == key or index.name == key:
            return index
    have = ", ".join(index.name for index in expr.indices) or "none"
    raise UnknownIndex(
        f"{describe(expr)} has no index {shown(key)!r}",
        where=call_site(),
        fix=f"its indices are: {have}",
    )


def find_all(expr: Expr, keys: Iterable[Any]) -> tuple[Index, ...]:
    found = tuple(find(expr, key) for key in keys)
    check_unique(found, "the call")
    return found


def axis_of(expr: Expr, key: Any) -> int:
    """The position of an index."""
    return expr.indices.index(find(expr, key))


def refuse_truth(expr: Expr) -> NoReturn:
    raise ArgumentError(
        f"{describe(expr)} has no truth value: nothing is computed until compiled",
        where=call_site(),
        fix="use tnc.where(condition, a, b), or '==' to compare two expressions as a whole",
    )


def check_key(key: Any) -> None:
    if not isinstance(key, Index | str):
        raise ArgumentError(
            f"{key!r} names no index", where=call_site(), fix="give an index or its name"
        )
