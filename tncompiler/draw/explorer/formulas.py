"""Sizes and costs as JSON that the page evaluates: numbers, ["size", k], [operator, …].

A cost is a list of [coefficient, factor, …]; the page's formulas.js reads both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from tncompiler.ir.errors import UnboundSize
from tncompiler.ir.sizes import Binding, Size, Terms

_MOST = int(1.7e308)  # the page counts in floating point


class Formulas:
    """Writes sizes in which the k-th of some symbols is ["size", k], and others are numbers."""

    def __init__(self, symbols: Sequence[sympy.Symbol], known: Binding) -> None:
        self.places = {symbol: k for k, symbol in enumerate(symbols)}
        self.known = known

    def terms(self, terms: Terms) -> list[list[Any]]:
        """A cost."""
        return [[min(c, _MOST), *map(self.size, factors)] for c, factors in terms.terms]

    def size(self, size: Size, block: Mapping[sympy.Symbol, int] | None = None) -> Any:
        """A size; ``block`` has the sizes of blocks, which only a loop's body knows."""
        if isinstance(size, int | sympy.Integer):
            return min(int(size), _MOST)
        if isinstance(size, sympy.Symbol):
            return self._symbol(size, block or {})
        if isinstance(size, sympy.floor):
            return ["//", *(self.size(part, block) for part in size.args[0].as_numer_denom())]
        numerator, denominator = size.as_numer_denom()
        if denominator != 1:
            return ["//", self.size(numerator, block), self.size(denominator, block)]
        operator = next((sign for kind, sign in _OPERATORS.items() if isinstance(size, kind)), None)
        if operator is None:
            raise UnboundSize(f"the size {size} cannot be evaluated", fix="use + - * // **")
        return [operator, *(self.size(part, block) for part in size.args)]

    def _symbol(self, symbol: sympy.Symbol, block: Mapping[sympy.Symbol, int]) -> Any:
        if symbol in self.places:
            return ["size", self.places[symbol]]
        return int({**self.known, **block}[symbol])


_OPERATORS: dict[type[sympy.Expr], str] = {
    sympy.Add: "+",
    sympy.Mul: "*",
    sympy.Pow: "**",
    sympy.Min: "min",
}
