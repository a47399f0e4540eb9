"""Symbolic sizes of an expression given values, as an expression again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from tncompiler.ir.expressions import Expr, walk
from tncompiler.ir.index import Index
from tncompiler.ir.sizes import Size, substitute

Binding = Mapping[sympy.Symbol, Size]


def bound_to(expr: Expr, sizes: Sequence[Size]) -> Expr:
    """The expression with those of its open sizes that are symbols bound to `sizes`, by position.

    What does not fit is left as it is, for the caller to see.
    """
    binding: dict[sympy.Symbol, Size] = {}
    for index, size in zip(expr.indices, sizes, strict=True):
        if isinstance(index.size, sympy.Symbol) and index.size != size:
            binding.setdefault(index.size, size)
    return substitute_sizes(expr, binding) if binding else expr


def substitute_sizes(expr: Expr, binding: Binding) -> Expr:
    """The expression with symbols replaced in all its sizes."""
    done: dict[int, Expr] = {}
    for node in walk(expr):
        names = [name for name in node.__dataclass_fields__ if name != "digest"]
        fields = {name: _substituted(getattr(node, name), binding, done) for name in names}
        done[id(node)] = type(node)(**fields)
    return done[id(expr)]


def _substituted(value: Any, binding: Binding, done: Mapping[int, Expr]) -> Any:
    match value:
        case Expr():
            return done[id(value)]
        case Index():
            return Index(value.name, substitute(value.size, binding))
        case tuple():
            return tuple(_substituted(part, binding, done) for part in value)
        case sympy.Expr():
            return substitute(value, binding)
    return value
