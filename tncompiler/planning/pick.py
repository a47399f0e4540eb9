"""Which plan runs at sizes that only a call makes known: one made for powers of two around them.

In: sizes. Out: the sizes whose plan runs, a function of the sizes alone, whatever came before. With
one free size the plans for the powers below and above it compete, and where their orders differ
that for the middle between them as well. The size at which one becomes cheaper than the one before
is found once; from then on a comparison of integers decides. With several free sizes the plans for
all powers below, all above and the nearest ones compete, by their cost at the sizes themselves.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import sympy

from tncompiler.planning.order import Pair

Sizes = Mapping[sympy.Symbol, int]
Orders = Mapping[str, tuple[Pair, ...]]


def power_below(size: int) -> int:
    """The largest power of two up to a size; 1 for an empty one."""
    return 1 << max(size.bit_length() - 1, 0)


def power_above(size: int) -> int:
    """The smallest power of two from a size on."""
    return 1 << max(size - 1, 0).bit_length()


def middle_of(power: int) -> int:
    """The size halfway, in ratio, to the next power of two."""
    return math.isqrt(2 * power * power)


def nearest_power(size: int) -> int:
    """The power of two nearest to a size in ratio."""
    low = power_below(size)
    return 2 * low if size * size > 2 * low * low else low


def nearest_powers(sizes: Sizes) -> dict[sympy.Symbol, int]:
    """The nearest power of two to each size."""
    return {symbol: nearest_power(size) for symbol, size in sizes.items()}


@dataclass(frozen=True)
class Picker:
    """Picks among plans.

    ``orders_at``: the orders planned for sizes. ``cost``: of orders at sizes, by the plans' own
    objective.
    """

    orders_at: Callable[[Sizes], Orders]
    cost: Callable[[Orders, Sizes], float]
    _octaves: dict[int, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)

    def pick(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        """The sizes whose plan runs at `sizes`."""
        if len(sizes) == 1:
            ((symbol, size),) = sizes.items()
            return {symbol: self._planned(symbol, size)}
        around = [
            nearest_powers(sizes),
            {symbol: power_below(size) for symbol, size in sizes.items()},
            {symbol: power_above(size) for symbol, size in sizes.items()},
        ]
        if around[1] == around[2]:
            return around[0]
        return min(around, key=lambda powers: self.cost(self.orders_at(powers), sizes))

    def _planned(self, symbol: sympy.Symbol, size: int) -> int:
        low = power_below(size)
        if size <= low:
            return low
        found = self._octaves.get(low)
        if found is None:
            found = self._octaves[low] = self._octave(symbol, low)
        starts, planned = found
        return planned[bisect_right(starts, size) - 1]

    def _octave(self, symbol: sympy.Symbol, low: int) -> tuple[Sequence[int], Sequence[int]]:
        """From which sizes on which plans run, from a power of two to the next."""
        planned = [low, 2 * low]
        if self.orders_at({symbol: low}) != self.orders_at({symbol: 2 * low}):
            planned = sorted({low, middle_of(low), 2 * low})
        changes = [self.crossing(symbol, *pair) for pair in pairwise(planned)]
        return [low, *changes], planned

    def crossing(self, symbol: sympy.Symbol, below: int, above: int) -> int:
        """The first size from which the plan for `above` runs, not that for `below`."""
        first, second = self.orders_at({symbol: below}), self.orders_at({symbol: above})
        while first != second and above - below > 1:
            middle = (below + above) // 2
            at = {symbol: middle}
            if self.cost(second, at) < self.cost(first, at):
                above = middle
            else:
                below = middle
        return above
