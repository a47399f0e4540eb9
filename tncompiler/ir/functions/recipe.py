"""A function of numbers in terms of others, read off an expression: what users define.

A recipe runs on anything that adds, multiplies and is given `call`: NumPy arrays, traced values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.functions.rule import Call
from tncompiler.ir.origin import call_site

Item = tuple[str, Any, tuple[int, ...]]  # what it is, its name or number, the items it is made of


@dataclass(frozen=True, slots=True)
class Recipe:
    """Items in order, the last one being the result; "argument" items are numbered."""

    items: tuple[Item, ...]

    def __call__(self, call: Call, *arguments: Any) -> Any:
        done: list[Any] = []
        for kind, what, operands in self.items:
            given = [done[k] for k in operands]
            if kind == "argument":
                done.append(arguments[what])
            elif kind == "number":
                done.append(what)
            elif kind == "product":
                total = given[0]
                for factor in given[1:]:
                    total = total * factor
                done.append(total)
            else:
                done.append(call(what, *given))
        return done[-1]


def read_recipe(expr: Expr, arguments: Sequence[Expr], owner: str) -> Recipe:
    """The recipe of an expression of scalars. Raises ArgumentError for anything but functions,
    sums, products and numbers."""
    places: dict[int, int] = {}
    items: list[Item] = []
    for node in ex.walk(expr):
        operands = tuple(places[id(operand)] for operand in node.operands)
        places[id(node)] = len(items)
        items.append(_item(node, operands, arguments, owner))
    return Recipe(tuple(items))


def _item(node: Expr, operands: tuple[int, ...], arguments: Sequence[Expr], owner: str) -> Item:
    match node:
        case ex.Leaf() if node in arguments:
            return ("argument", arguments.index(node), ())
        case ex.Literal(value=value) if isinstance(value, int | float):
            return ("number", float(value), ())
        case ex.Map():
            return ("map", node.function, operands)
        case ex.Contract():
            return ("product", None, operands)
    raise ArgumentError(
        f"{owner}: {type(node).__name__} is no function of numbers",
        where=call_site(),
        fix="use the function's own arguments, numbers, + - * /, and functions of tnc",
    )
