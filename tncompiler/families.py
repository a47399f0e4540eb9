"""Families of plans of a compilation: ranges of one size, and the plan that runs in each.

The rule is that of calls (planning/pick.py), so a family shows what a compiled network does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import sympy

from tncompiler.compiler import Compilation
from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Terms, as_size
from tncompiler.planning.family import FamilyMember, PlanFamily
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import live_terms, step_terms
from tncompiler.planning.pick import middle_of
from tncompiler.planning.timing import program_us

Range = tuple[int, int]


def make_family(
    compilation: Compilation,
    dtypes: tuple[str, ...],
    symbol: sympy.Symbol,
    bounds: tuple[Any, Any],
    wrt: tuple[str, ...] = (),
    sizes: Mapping[Any, Any] | None = None,
    *,
    keeps: bool = False,
) -> PlanFamily:
    """The plans that run for the sizes of a range; of training steps if `wrt` names leaves.

    ``keeps``: of calls that keep what parameters alone make.
    Raises: PlanError if the range is empty.
    """
    low, high = (as_size(bound, f"a bound of {symbol}") for bound in bounds)
    if not isinstance(low, int) or not isinstance(high, int) or low > high:
        raise PlanError(
            f"{symbol} goes from {low} to {high}",
            where=call_site(),
            fix="give two integers, the smaller one first",
        )
    family = _Family(compilation, dtypes, symbol, wrt, dict(sizes or {}), keeps and not wrt)
    members = tuple(family.member(*part) for part in family.ranges(low, high))
    return PlanFamily(symbol.name, members, bool(wrt))


def free_size(compilation: Compilation, key: Any = None) -> sympy.Symbol:
    """The free size that a key means; the only one if there is no key. Raises: PlanError."""
    free = compilation.free_symbols
    size = compilation.symbol_of(key)[0] if key is not None else free[0] if free else None
    if size not in free or (key is None and len(free) > 1):
        names = ", ".join(symbol.name for symbol in free)
        raise PlanError(
            f"the network has {len(free)} free sizes, and {key!r:.40} is none of them"
            if key is not None
            else f"the network has {len(free)} free sizes",
            where=compilation.place(),
            fix=f"name one of {names}" if free else "leave the size of an index open",
        )
    return size


class _Family:
    """A family in the making."""

    def __init__(
        self,
        compilation: Compilation,
        dtypes: tuple[str, ...],
        symbol: sympy.Symbol,
        wrt: tuple[str, ...],
        given: dict[Any, Any],
        keeps: bool,
    ) -> None:
        self.compilation, self.dtypes, self.symbol = compilation, dtypes, symbol
        self.wrt, self.given, self.keeps = wrt, given, keeps

    def sizes(self, size: int) -> dict[sympy.Symbol, int]:
        return self.compilation.nominal({**self.given, self.symbol: size})

    def orders(self, size: int) -> object:
        sizes = self.sizes(size)
        if self.keeps:
            return self.compilation.inference(self.dtypes, sizes, keeps=True).orders
        return self.compilation.scheduled(self.dtypes, sizes, self.wrt)[1]

    def ranges(self, low: int, high: int) -> Iterator[Range]:
        """Where one set of orders runs: between planned sizes they change at most once."""
        start = low
        for a, b in pairwise(_places(low, high)):
            if self.orders(a) != self.orders(b):
                change = self._change(a, b)
                yield start, change - 1
                start = change
        yield start, high

    def _change(self, below: int, above: int) -> int:
        first = self.orders(below)
        while above - below > 1:
            middle = (below + above) // 2
            if self.orders(middle) == first:
                below = middle
            else:
                above = middle
        return above

    def member(self, low: int, high: int) -> FamilyMember:
        sizes = self.sizes(low)
        plan = self.compilation.plan(sizes, self.dtypes, self.wrt, keeps=self.keeps)
        rates = as_machine(self.compilation.options.machine).planning
        curve = tuple(
            (size, program_us(self._program(size), self.sizes(size), rates))
            for size in dict.fromkeys(_places(low, high))
        )
        return FamilyMember(plan, low, high, curve, tuple(dict.fromkeys(self._alive(low))))

    def _program(self, size: int) -> Program:
        sizes = self.sizes(size)
        if self.wrt:
            return self.compilation.joint(self.dtypes, sizes, self.wrt)
        return self.compilation.inference(self.dtypes, sizes, keeps=self.keeps).fitted.program

    def _alive(self, size: int) -> Iterator[Terms]:
        if self.wrt:
            return step_terms(self.compilation.training(self.dtypes, self.sizes(size), self.wrt))
        return live_terms(self._program(size))


def _places(low: int, high: int) -> list[int]:
    """The ends of a range and, between them, the sizes for which plans are made."""
    powers = [1 << k for k in range(high.bit_length() + 1)]
    made = sorted({*powers, *map(middle_of, powers)})
    return [low, *(size for size in made if low < size < high), high]
