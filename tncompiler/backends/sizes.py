"""Lines of source that read a program's free sizes off its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import sympy

from tncompiler.ir.errors import UnboundSize
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Equation, Size, render_size, substitute, symbols_of


def size_header(
    program: Program,
    wanted: Mapping[sympy.Symbol, str],
    arguments: Mapping[str, str],
    name_symbol: Callable[[sympy.Symbol], str],
) -> list[str]:
    """One line a symbol: from an axis that it is, from one that it scales, or from an equation."""
    names = dict(wanted)
    for equation in program.equations:  # what an equation needs may be wanted by nothing else
        for symbol in sorted({k for s in equation.sizes for k in symbols_of(s)}, key=str):
            names.setdefault(symbol, name_symbol(symbol))
    lines: list[str] = []
    known: set[sympy.Symbol] = set()
    sources = list(_axes(program, arguments))
    alone = dict(reversed(sources))  # the first axis that is the size
    pending = sorted(wanted if all(s in alone for s in wanted) else names, key=lambda s: s.name)
    while pending:
        left = []
        for symbol in pending:
            text = (
                alone.get(symbol)
                or _from_axes(symbol, sources, known, names)
                or _from_equations(symbol, program.equations, known, names, sources)
            )
            if text is None:
                left.append(symbol)
            else:
                known.add(symbol)
                lines.append(f"{names[symbol]} = {text}")
        if len(left) == len(pending):
            left = [symbol for symbol in left if symbol in wanted]
            if not left:
                break
            raise UnboundSize(
                f"the size {left[0]} is on no argument of the program",
                fix=f"give sizes={{{str(left[0])!r}: …}}",
            )
        pending = left
    return lines


def _axes(program: Program, arguments: Mapping[str, str]) -> Iterator[tuple[Size, str]]:
    for argument in program.arguments:
        for axis, size in enumerate(argument.value.shape):
            if not isinstance(size, int):
                yield size, f"{arguments[argument.value.name]}.shape[{axis}]"


def _from_axes(
    symbol: sympy.Symbol,
    sources: list[tuple[Size, str]],
    known: set[sympy.Symbol],
    names: Mapping[sympy.Symbol, str],
) -> str | None:
    for size, text in sources:
        solved = _solve(size, text, symbol, known, names)
        if solved is not None:
            return solved
    return None


def _solve(
    size: Size,
    text: str,
    symbol: sympy.Symbol,
    known: set[sympy.Symbol],
    names: Mapping[sympy.Symbol, str],
) -> str | None:
    """`symbol` from `size == text`, where the size is linear in it and the rest is known."""
    if isinstance(size, int) or symbol not in symbols_of(size):
        return None
    slope, offset = size.coeff(symbol, 1), size.coeff(symbol, 0)
    if symbol in slope.free_symbols or slope == 0 or size != slope * symbol + offset:
        return None
    if not (slope.free_symbols | offset.free_symbols) <= known:
        return None
    shifted = text if offset == 0 else f"{_atom(text)} - ({render_size(offset, names)})"
    return shifted if slope == 1 else f"{_atom(shifted)} // ({render_size(slope, names)})"


def _atom(text: str) -> str:
    """The text in parentheses, unless it is one name, number or axis."""
    is_whole = not set(text) & set(" *")
    return text if is_whole else f"({text})"


def _from_equations(
    symbol: sympy.Symbol,
    equations: tuple[Equation, ...],
    known: set[sympy.Symbol],
    names: Mapping[sympy.Symbol, str],
    sources: list[tuple[Size, str]],
) -> str | None:
    direct = {size: text for size, text in sources if not isinstance(size, int)}
    for unknown, value in (pair for equation in equations for pair in equation.solutions()):
        if symbol in symbols_of(unknown):
            ready = symbols_of(value) <= known
            text = _text(value, names) if ready else direct.get(value)
            solved = None if text is None else _solve(unknown, text, symbol, known, names)
            if solved is not None:
                return solved
    return None


def _text(size: Size, names: Mapping[sympy.Symbol, str]) -> str:
    return render_size(substitute(size, {}), names)
