"""Sizes factored into modes that are as equal as they can be."""

from __future__ import annotations

from functools import cache
from math import inf, prod

from tncompiler.ir.errors import FormatError

_UNEVEN = 4.0  # largest factor over smallest from which padding is better


def factorize(n: int, modes: int, *, pad: bool | None = None) -> tuple[int, ...]:
    """`modes` factors of n, ascending, the largest as small as possible: 768, 3 → (8, 8, 12).

    Where no balanced factors exist (a prime, say), the next larger number that has them is taken:
    the product is then more than n, and weights are padded with zeros. ``pad`` False never does
    so, True always takes the most balanced of the numbers up to an eighth above n.

    Raises: FormatError if n or modes is less than 1.
    """
    for what, value in (("n", n), ("modes", modes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FormatError(f"factorize: {what} is {value!r}", fix="give an integer, 1 or more")
    exact = _balanced(n, modes)
    uneven = exact[-1] > _UNEVEN * exact[0] and n >= 2**modes
    if pad is False or (pad is None and not uneven):
        return exact
    limit = max(n + n // 8, n + 1)
    options = [_balanced(m, modes) for m in range(n, limit + 1)]
    if pad is None:  # the smallest that will do
        even = (o for o in options if o[-1] <= max(2.0 * o[0], o[0] + 1))
        return next(even, min(options, key=_spread))
    return min(options, key=lambda o: (_spread(o), prod(o)))


def _spread(factors: tuple[int, ...]) -> float:
    return factors[-1] / factors[0]


@cache
def _balanced(n: int, modes: int) -> tuple[int, ...]:
    """The factors with the smallest largest one; among those, with the largest smallest one."""
    if modes == 1:
        return (n,)
    best: tuple[float, float, tuple[int, ...]] = (inf, inf, ())
    for first in _divisors(n):
        if first**modes > n:
            break
        rest = _balanced(n // first, modes - 1)
        factors = tuple(sorted((first, *rest)))
        best = min(best, (factors[-1], -factors[0], factors))
    return best[2]


@cache
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))
