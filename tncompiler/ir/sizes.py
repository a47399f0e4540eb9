"""Sizes: ints or positive sympy integer expressions, their text form, equations and evaluation.

User text becomes a size only through `parse_size` (names, integers, + - * // **), never through
sympify. Costs are kept as lists of terms (`Terms`) and evaluated numerically.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import sympy

from tncompiler.ir.errors import BadSize, SizeEquationError, UnboundSize
from tncompiler.ir.names import check_index_name
from tncompiler.ir.origin import call_site

Size: TypeAlias = int | sympy.Expr
Binding = Mapping[sympy.Symbol, int]

_MAX_TEXT = 10_000  # characters
_MAX_EXPONENT = 64
_MAX_BITS = 1024  # of a number in a size: beyond any array, and small enough to work with


def size_symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for an unknown size called `name`."""
    return sympy.Symbol(name, integer=True, positive=True)


def as_size(value: object, owner: str = "size") -> Size:
    """A size from an int, an integer-like, a sympy integer expression or its text.

    Raises: BadSize if the value is negative, no integer, or not a size expression.
    """
    if isinstance(value, sympy.Integer) or (
        not isinstance(value, bool | str | sympy.Expr) and hasattr(value, "__index__")
    ):
        value = operator.index(value)
        if value.bit_length() > _MAX_BITS:
            raise BadSize(
                f"{owner} has a size of {value.bit_length()} bits",
                where=call_site(),
                fix=f"sizes have at most {_MAX_BITS} bits",
            )
        if value < 0:
            raise BadSize(f"{owner} has size {value}", where=call_site(), fix="sizes are 0 or more")
        return value
    if isinstance(value, str):
        return parse_size(value, owner)
    if isinstance(value, sympy.Expr) and value.is_integer and not value.is_negative:
        _check_magnitude(value)
        return value
    raise BadSize(
        f"{owner} has size {_shown(value)} of type {type(value).__name__}",
        where=call_site(),
        fix="give an int, a size made with tnc.size(…), or text such as '2*D'",
    )


def parse_size(text: str, owner: str = "size") -> Size:
    """Parse names, integers and + - * // ** into a size. Nothing is ever executed.

    A name that is no identifier stands in quotes: `2*'α β'`; so `size_text` writes it.
    """
    try:
        if len(text) > _MAX_TEXT:
            raise SyntaxError("too long")
        value = _from_ast(ast.parse(text.strip(), mode="eval").body)
    except (ArithmeticError, SyntaxError, RecursionError, MemoryError, TypeError, ValueError):
        raise BadSize(
            f"{owner}: {_shown(text)} is not a size expression",
            where=call_site(),
            fix="use names, integers and + - * // **, for example '4*D + 1'",
        ) from None
    return as_size(value, owner)


def _shown(value: object) -> str:
    return repr(value[:80] if isinstance(value, str) else value)[:100]


def _check_magnitude(size: sympy.Expr) -> None:
    """Refuse numbers and powers that only take time."""
    if size.is_Symbol:
        return
    powers = (power.exp for power in size.atoms(sympy.Pow))
    if any(not exponent.is_Integer or exponent > _MAX_EXPONENT for exponent in powers) or any(
        int(number.p).bit_length() > _MAX_BITS for number in size.atoms(sympy.Rational)
    ):
        raise BadSize(
            "a size has an exponent or a number that is too large",
            where=call_site(),
            fix=f"exponents are at most {_MAX_EXPONENT}, numbers have at most {_MAX_BITS} bits",
        )


def _checked(a: Size, b: Size, *, apply: Callable[[Size, Size], Size]) -> Size:
    """The result of one operation, refused as soon as it is too large to go on with."""
    result = apply(a, b)
    if not isinstance(result, int):
        _check_magnitude(result)
    elif result.bit_length() > _MAX_BITS:
        raise SyntaxError("the number is too large")
    return result


def _floor_divide(a: Size, b: Size) -> Size:
    if b == 0:
        raise SyntaxError("division by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return sympy.floor(sympy.Integer(1) * a / b)


def _power(a: Size, b: Size) -> Size:
    if not isinstance(b, int) or not 0 <= b <= _MAX_EXPONENT:
        raise SyntaxError("exponents are small integers")
    return a**b


_BINARY: dict[type[ast.operator], Callable[[Size, Size], Size]] = {
    ast.Add: partial(_checked, apply=operator.add),
    ast.Sub: partial(_checked, apply=operator.sub),
    ast.Mult: partial(_checked, apply=operator.mul),
    ast.FloorDiv: partial(_checked, apply=_floor_divide),
    ast.Pow: partial(_checked, apply=_power),
}


def _from_ast(node: ast.expr) -> Size:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Constant) and type(node.value) is str:
        return size_symbol(check_index_name(node.value))
    if isinstance(node, ast.Name):
        return size_symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_from_ast(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_from_ast(node.left), _from_ast(node.right))
    raise SyntaxError("not a size expression")


def render_size(size: Size, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """The size as text for people, or as Python source when `names` are given."""
    if isinstance(size, int):
        return str(size)
    return _render(size, names)[0]


def size_text(size: Size) -> str:
    """The size as text that `parse_size` reads: names that are no identifiers are quoted."""
    if isinstance(size, int):
        return str(size)
    return render_size(size, {s: _quoted(s.name) for s in symbols_of(size)})


def _quoted(name: str) -> str:
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return name if plain else repr(name)


def _render(expr: sympy.Expr, names: Mapping[sympy.Symbol, str] | None) -> tuple[str, int]:
    """Text and binding strength (0 sum, 1 product, 2 atom)."""
    if isinstance(expr, sympy.Integer):
        return (str(expr), 2 if expr >= 0 else 0)
    if isinstance(expr, sympy.Symbol):
        return (names[expr] if names is not None else expr.name, 2)
    if isinstance(expr, sympy.floor):
        numerator, denominator = expr.args[0].as_numer_denom()
        return f"{_wrap(numerator, names, 2)} // {_wrap(denominator, names, 2)}", 0
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
        return f"{_wrap(expr.base, names, 2)}**{expr.exp}", 1
    if isinstance(expr, sympy.Mul):
        return "*".join(_wrap(arg, names, 1) for arg in expr.as_ordered_factors()), 1
    if isinstance(expr, sympy.Add):
        return " + ".join(_wrap(arg, names, 1) for arg in expr.as_ordered_terms()), 0
    raise BadSize(f"the size {expr} cannot be written down", fix="use + - * // ** of integers")


def _wrap(expr: sympy.Expr, names: Mapping[sympy.Symbol, str] | None, least: int) -> str:
    text, strength = _render(expr, names)
    return text if strength >= least else f"({text})"


def symbols_of(size: Size) -> frozenset[sympy.Symbol]:
    """The symbols a size depends on."""
    return frozenset() if isinstance(size, int) else frozenset(size.free_symbols)


def evaluate(size: Size, binding: Binding) -> int:
    """The number a size has under a binding.

    Raises: UnboundSize if a symbol has no value.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, sympy.Symbol):
        try:
            return binding[size]
        except KeyError:
            raise UnboundSize(
                f"the size {size} has no value", fix=f"give sizes={{{str(size)!r}: …}}"
            ) from None
    if isinstance(size, sympy.Integer):
        return int(size)
    if isinstance(size, sympy.Add):
        return sum(evaluate(arg, binding) for arg in size.args)
    if isinstance(size, sympy.Mul):
        numerator, denominator = size.as_numer_denom()
        if denominator != 1:
            return evaluate(numerator, binding) // evaluate(denominator, binding)
        return math.prod(evaluate(arg, binding) for arg in size.args)
    if isinstance(size, sympy.Pow):
        return int(evaluate(size.base, binding) ** int(size.exp))
    if isinstance(size, sympy.floor):
        numerator, denominator = size.args[0].as_numer_denom()
        return evaluate(numerator, binding) // evaluate(denominator, binding)
    raise UnboundSize(f"the size {size} cannot be evaluated", fix="use + - * // ** of integers")


def substitute(size: Size, binding: Mapping[sympy.Symbol, Size]) -> Size:
    """The size with known symbols replaced; stays symbolic in the others."""
    if isinstance(size, int) or not (size.free_symbols & binding.keys()):
        return size
    numbers = {k: sympy.Integer(v) if isinstance(v, int) else v for k, v in binding.items()}
    result = size.xreplace(numbers)
    return int(result) if isinstance(result, sympy.Integer) else result


def plain(size: Size) -> Size:
    """The size, as an int where sympy holds one."""
    return int(size) if isinstance(size, sympy.Integer) else size


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes."""
    number, factors = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            factors.append(size)
    return sympy.Mul(number, *factors) if factors else number


def resized(shape: tuple[Size, ...], axis: int | None, size: Size) -> tuple[Size, ...]:
    """The shape with another size on one axis; as it is where the axis is None."""
    return shape if axis is None else (*shape[:axis], size, *shape[axis + 1 :])


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are the same expression (not merely equal at some values)."""
    return a is b or bool(a == b)


@dataclass(frozen=True, slots=True)
class SizeEquation:
    """`total` equals the product of `parts`; recorded by split and merge, solved at bind time."""

    total: Size
    parts: tuple[Size, ...]
    where: str = ""

    def substitute(self, binding: Mapping[sympy.Symbol, Size]) -> SizeEquation:
        parts = tuple(substitute(part, binding) for part in self.parts)
        return SizeEquation(substitute(self.total, binding), parts, self.where)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Every size that the equation speaks of."""
        return (self.total, *self.parts)

    def text(self) -> str:
        return f"{render_size(self.total)} = " + " * ".join(map(render_size, self.parts))

    def solutions(self) -> tuple[tuple[Size, Size], ...]:
        """Sizes with what they must be."""
        return ((self.total, product(self.parts)), (product(self.parts), self.total))

    def solve(self, binding: dict[sympy.Symbol, int]) -> bool:
        """Determine at most one unknown, in place. False if too much is unknown."""
        return solve_equation(self, binding)


class Equation(Protocol):
    """What is known of sizes that no array tells: of splits, merges and windows."""

    @property
    def parts(self) -> tuple[Size, ...]: ...

    @property
    def sizes(self) -> tuple[Size, ...]: ...

    def text(self) -> str: ...

    def solutions(self) -> tuple[tuple[Size, Size], ...]: ...

    def solve(self, binding: dict[sympy.Symbol, int]) -> bool: ...


def solve_for(size: Size, value: int, binding: dict[sympy.Symbol, int], where: str) -> bool:
    """Use `size == value` to find the one symbol of `size` that `binding` lacks, or to check it.

    Returns False when more than one symbol is unknown; raises SizeEquationError on a remainder
    or a clash.
    """
    size = substitute(size, binding)
    if isinstance(size, int):
        if size != value:
            raise SizeEquationError(
                f"a size must be {size} but is {value}",
                where=where,
                fix="give sizes that agree with each other",
            )
        return True
    symbols = symbols_of(size)
    if len(symbols) > 1:
        return False
    (symbol,) = symbols
    slope = size.coeff(symbol, 1)
    offset = size.coeff(symbol, 0)
    if not (slope.is_Integer and slope > 0 and offset.is_Integer):
        return False
    quotient, remainder = divmod(value - int(offset), int(slope))
    if remainder or quotient < 0:
        raise SizeEquationError(
            f"{render_size(size)} = {value} has no whole solution for {symbol}",
            where=where,
            fix=f"give a size that makes {symbol} a whole number",
        )
    binding[symbol] = quotient
    return True


def solve_equation(equation: SizeEquation, binding: dict[sympy.Symbol, int]) -> bool:
    """Determine at most one unknown of an equation, in place. False if too much is unknown."""
    where = f"{equation.where or 'a split or merge'} ({equation.text()})"
    parts = [substitute(part, binding) for part in equation.parts]
    unknown = [part for part in parts if not isinstance(part, int)]
    known = math.prod(part for part in parts if isinstance(part, int))
    total = substitute(equation.total, binding)
    if not unknown:
        return solve_for(total, known, binding, where)
    if len(unknown) > 1 or not isinstance(total, int):
        return False
    if known == total == 0:
        return False  # 0 = 0 * n says nothing of n
    if known == 0 or total % known:
        raise SizeEquationError(
            f"{total} is not a multiple of {known}",
            where=where,
            fix="give sizes that multiply out",
        )
    return solve_for(unknown[0], total // known, binding, where)


def volume(shape: Iterable[Size], binding: Binding) -> int:
    """The number of elements of a shape under a binding."""
    return math.prod([n if isinstance(n, int) else evaluate(n, binding) for n in shape])


def solve_all(equations: Iterable[Equation], binding: dict[sympy.Symbol, int]) -> None:
    """Solve equations, in order and again while one brings news, in place."""
    pending = list(equations)
    while pending:
        left = [equation for equation in pending if not equation.solve(binding)]
        if len(left) == len(pending):
            return
        pending = left


_INTEGERS = frozenset((int,))


@dataclass(frozen=True, slots=True)
class Terms:
    """A cost as a list of terms coefficient * product(factors); summed, never expanded."""

    terms: tuple[tuple[int, tuple[Size, ...]], ...] = ()

    @classmethod
    def of(cls, coefficient: int, factors: Iterable[Size]) -> Terms:
        """One term; integer factors are folded into the coefficient."""
        every = tuple(factors)
        if _INTEGERS.issuperset(map(type, every)):  # as almost always
            coefficient *= math.prod(every)
            return cls(((coefficient, ()),) if coefficient else ())
        symbolic = tuple([factor for factor in every if not isinstance(factor, int)])
        coefficient *= math.prod([factor for factor in every if isinstance(factor, int)])
        return cls(((coefficient, symbolic),) if coefficient else ())

    @classmethod
    def total(cls, costs: Iterable[Terms]) -> Terms:
        """The sum; terms with the same factors are collected."""
        collected: dict[tuple[Size, ...], int] = {}
        for cost in costs:
            for coefficient, factors in cost.terms:
                key = tuple(sorted(factors, key=str))
                collected[key] = collected.get(key, 0) + coefficient
        return cls(tuple((coefficient, key) for key, coefficient in collected.items()))

    def __add__(self, other: Terms) -> Terms:
        return Terms.total((self, other))

    def evaluate(self, binding: Binding) -> int:
        return sum(
            c * math.prod(evaluate(f, binding) for f in factors) for c, factors in self.terms
        )

    def replaced(self, old: Size, new: Size) -> Terms:
        """The cost with another size in place of a factor."""
        return Terms.total(
            Terms.of(c, (new if factor == old else factor for factor in factors))
            for c, factors in self.terms
        )

    def to_sympy(self) -> sympy.Expr:
        return sympy.Add(*(sympy.Mul(c, *factors) for c, factors in self.terms))
