"""What the compiler must know of an elementwise function.

Partials and special rules are written once over abstract values, which add, multiply, divide and
`call` other functions; they run on program values when differentiating, and on NumPy arrays when
the reference interpreter bounds an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Value = Any
Call = Callable[..., Value]
Partial = Callable[..., Value]  # (call, *operands, out) -> the derivative by one operand


@dataclass(frozen=True, slots=True)
class Elementwise:
    """One elementwise function.

    ``reference`` computes it on float64 or complex128 NumPy arrays. ``partials`` holds one
    derivative per operand (None where it is zero); for functions that are not holomorphic
    ``tangent(call, tangents, *operands, out)`` and ``adjoint(call, cotangent, *operands, out)``
    replace them (entries None mean zero). ``numpy`` and ``torch`` are source templates over
    ``{0}``, ``{1}``, …; ``scipy`` names what the NumPy template needs from scipy.special,
    ``helper`` and ``torch_helper`` what it needs from the runtime of the NumPy or torch backend.
    ``result`` is "same" (operands promoted), "real" or "bool"; ``domain`` is the kinds of numbers
    it takes; ``jumps`` says that it is discontinuous where its operands are equal (or zero).
    ``recipe(call, *operands)`` and ``slopes`` are what a user's function and its derivatives are in
    terms of others, instead of templates.
    """

    name: str
    arity: int
    reference: Callable[..., Any]
    numpy: str
    torch: str
    partials: tuple[Partial | None, ...] | None = None
    tangent: Callable[..., Value] | None = None
    adjoint: Callable[..., tuple[Value | None, ...]] | None = None
    result: str = "same"
    domain: tuple[str, ...] = ("float", "complex")
    scipy: tuple[str, ...] = ()
    jumps: bool = False
    helper: str = ""
    torch_helper: str = ""
    recipe: Callable[..., Value] | None = None
    slopes: tuple[object, ...] = ()
