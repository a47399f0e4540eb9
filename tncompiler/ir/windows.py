"""How three indices of a window go together: source = out·stride + kernel·dilation - before.

In: sizes, a stride, a dilation, padding. Out: the size that follows, or the equation to solve once
sizes are known. Any two of the positions fix the third; positions outside the source hold zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from tncompiler.ir.errors import SizeEquationError, WindowError
from tncompiler.ir.sizes import Size, plain, render_size, solve_for, substitute


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a window moves: ``stride`` from one to the next, ``dilation`` from tap to tap.

    ``before`` and ``after``: zeros around the source.
    """

    stride: int = 1
    dilation: int = 1
    before: Size = 0
    after: Size = 0

    def text(self) -> str:
        padding = f"{render_size(self.before)}, {render_size(self.after)}"
        return f"stride {self.stride}, dilation {self.dilation}, padding ({padding})"

    def substitute(self, binding: Mapping[sympy.Symbol, Size]) -> Geometry:
        before, after = substitute(self.before, binding), substitute(self.after, binding)
        return Geometry(self.stride, self.dilation, before, after)


def extent(kernel: Size, dilation: int) -> Size:
    """Positions from the first to the last tap of a window, both counted."""
    return plain(dilation * (kernel - 1) + 1)


def same_padding(kernel: Size, dilation: int) -> tuple[Size, Size]:
    """Zeros before and after with which a window of stride 1 keeps the size; odd ones go after."""
    total = dilation * (kernel - 1)
    half = total // 2 if isinstance(total, int) else sympy.floor(total / 2)
    return half, plain(total - half)


def window_count(source: Size, kernel: Size, geometry: Geometry) -> Size:
    """How many windows there are; less than 1 where none fits."""
    room = source + geometry.before + geometry.after - extent(kernel, geometry.dilation)
    if isinstance(room, int | sympy.Integer):
        return int(room) // geometry.stride + 1
    return sympy.floor(room / geometry.stride) + 1


@dataclass(frozen=True, slots=True)
class WindowEquation:
    """`out` equals the count of windows over `source`; recorded by windows, solved at bind time."""

    source: Size
    out: Size
    kernel: Size
    geometry: Geometry
    where: str = ""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Every size that the equation speaks of."""
        geometry = self.geometry
        return (self.source, self.out, self.kernel, geometry.before, geometry.after)

    @property
    def parts(self) -> tuple[Size, ...]:
        """The sizes that the count of windows follows from."""
        return (self.source, self.kernel)

    def substitute(self, binding: Mapping[sympy.Symbol, Size]) -> WindowEquation:
        source, out, kernel = (substitute(s, binding) for s in self.sizes[:3])
        return WindowEquation(source, out, kernel, self.geometry.substitute(binding), self.where)

    def text(self) -> str:
        source, out, kernel = map(render_size, self.sizes[:3])
        return f"{out} windows of {kernel} taps over {source} ({self.geometry.text()})"

    def solutions(self) -> tuple[tuple[Size, Size], ...]:
        """Sizes with what they must be: the count, and with stride 1 the source."""
        count = (self.out, window_count(self.source, self.kernel, self.geometry))
        if self.geometry.stride != 1:
            return (count,)
        room = extent(self.kernel, self.geometry.dilation) - 1
        padding = self.geometry.before + self.geometry.after
        return (count, (self.source, plain(self.out + room - padding)))

    def solve(self, binding: dict[sympy.Symbol, int]) -> bool:
        """Determine the one unknown, in place. False if too much is unknown."""
        bound = self.substitute(binding)
        for unknown, value in bound.solutions():
            if isinstance(value, int):
                bound.check_fit(value if unknown is bound.out else bound.out)
                return solve_for(unknown, value, binding, f"{self.where} ({bound.text()})")
        return False

    def check_fit(self, count: Size) -> None:
        """Refuse windows that do not fit into the padded source; none fits into nothing.

        Raises: WindowError.
        """
        if isinstance(count, int) and count < 1 and (count, self.source) != (0, 0):
            reach = extent(self.kernel, self.geometry.dilation)
            padding = self.geometry.before + self.geometry.after
            raise WindowError(
                f"a window of {render_size(reach)} positions does not fit into "
                f"{render_size(self.source)} with {render_size(padding)} of padding",
                where=self.where or None,
                fix="use fewer taps, a smaller dilation or more padding",
            )


def check_count(out: Size, equation: WindowEquation) -> None:
    """Refuse a count of windows that is certainly another one. Raises: SizeEquationError."""
    count = equation.solutions()[0][1]
    if isinstance(count, int):
        equation.check_fit(count)
    if isinstance(out, int) and isinstance(count, int) and out != count:
        raise SizeEquationError(
            f"there are {count} windows, not {out}: {equation.text()}",
            where=equation.where or None,
            fix=f"give the index of the windows the size {count}, or none",
        )


def reading_windows(
    position: int, count: int, source: int, stride: int, before: int
) -> tuple[int, int]:
    """Which windows read inside the source with a tap at `position` (its number times dilation).

    The first, and the one after the last; empty ranges start where they stop.
    """
    first = max(0, -((position - before) // stride))
    last = min(count, (source - 1 + before - position) // stride + 1)
    return first, max(first, last)
