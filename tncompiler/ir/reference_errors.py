"""How far functions of numbers may be off that are computed with a given eps.

In: a function's name, its operands with their errors, its value. Out: a bound on the error of the
value, elementwise; the reference interpreter's, which see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tncompiler.ir.functions import function

SLACK = 1.01  # pays for the terms of second order
UNDECIDED = 1.0  # what a comparison may be off by where its operands may be equal
# piecewise linear with slopes of at most 1: an error passes, wherever the corners are
_PASSING = (
    *("relu", "abs", "conj", "real", "imag", "project", "stop", "maximum", "minimum"),
    *("floordiv", "mod", "scramble"),  # of whole numbers, which are exact
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value and its error by axis; `error` None means exact."""

    value: np.ndarray
    error: np.ndarray | None = None

    @property
    def errors(self) -> np.ndarray:
        return np.zeros(self.value.shape) if self.error is None else self.error


@dataclass(frozen=True, slots=True)
class Rounding:
    """The arithmetic that is bounded: its eps, and its smallest normal number."""

    eps: float
    tiny: float


def _call(name: str, *arguments: Any) -> Any:
    return function(name).reference(*arguments)


def map_error(
    by: Rounding, name: str, arguments: Sequence[Tensor], out: np.ndarray
) -> np.ndarray | None:
    """What the operands' errors make of it, and the function's own rounding.

    ``out``: its value. None if it is exact.
    """
    rule = function(name)
    if name == "relu_gate":  # chooses as `where` does, between the cotangent and zero
        cotangent, gate = arguments
        condition = Tensor(gate.value > 0, _jump_error((gate,), out))
        return _where_error(condition, cotangent, Tensor(np.zeros(())))
    if rule.jumps:
        return _jump_error(arguments, out)
    if name == "where":
        return _where_error(*arguments)
    if rule.recipe is not None:  # a user's, whose derivative may be anything
        return _recipe_error(by, rule.recipe, arguments)
    errors = [a.error for a in arguments]
    if name in _PASSING:
        return _passing_error(by, name, errors, out)
    own: np.ndarray = 4 * by.eps * _rounded_magnitude(name, arguments, out) + by.tiny
    if rule.partials is None:
        own = own + _tangent_error(rule.tangent, arguments, out)
    values = [a.value for a in arguments]
    for slope, error in zip(rule.partials or (None,) * len(errors), errors, strict=True):
        if slope is not None and error is not None:
            own = own + SLACK * np.abs(slope(_call, *values, out)) * error
    return own


def _recipe_error(
    by: Rounding, recipe: Callable[..., Any], arguments: Sequence[Tensor]
) -> np.ndarray | None:
    """The error that the functions leave which a recipe is made of."""
    parts = [_Part(by, argument) for argument in arguments]
    return _part_of(by, recipe(partial(_part_call, by), *parts)).tensor.error


@dataclass(frozen=True, slots=True)
class _Part:
    """A value on the way through a function's recipe."""

    by: Rounding
    tensor: Tensor

    def __mul__(self, other: _Part | float) -> _Part:
        a, b = self.tensor, _part_of(self.by, other).tensor
        value = a.value * b.value
        error = 4 * self.by.eps * np.abs(value) + self.by.tiny + a.errors * b.errors
        error = error + np.abs(a.value) * b.errors + a.errors * np.abs(b.value)
        return _Part(self.by, Tensor(value, error))

    __rmul__ = __mul__


def _part_of(by: Rounding, value: _Part | float) -> _Part:
    if isinstance(value, _Part):
        return value
    return _Part(by, Tensor(np.asarray(value), np.asarray(by.eps * abs(value))))


def _part_call(by: Rounding, name: str, *operands: _Part | float) -> _Part:
    given = [_part_of(by, operand).tensor for operand in operands]
    value = np.asarray(_call(name, *(tensor.value for tensor in given)))
    return _Part(by, Tensor(value, map_error(by, name, given, value)))


def _rounded_magnitude(name: str, arguments: Sequence[Tensor], out: np.ndarray) -> np.ndarray:
    """What the rounding of a function is relative to: its value, unless its formula cancels."""
    magnitude: np.ndarray = np.abs(arguments[0].value if name in ("gelu", "gelu_gate") else out)
    return magnitude


def _passing_error(
    by: Rounding, name: str, errors: Sequence[np.ndarray | None], out: np.ndarray
) -> np.ndarray | None:
    known = [error for error in errors[: 1 if name == "project" else None] if error is not None]
    own = 4 * by.eps * np.abs(out) if name == "abs" else None  # of a complex number
    total = known[0] if known else None
    for error in known[1:]:
        total = np.maximum(total, error)  # type: ignore[arg-type]
    return total if own is None else own if total is None else own + total


def _jump_error(arguments: Sequence[Tensor], out: np.ndarray) -> np.ndarray | None:
    """Undecided where the operands (or operand and zero) may be equal."""
    known = [a.error for a in arguments if a.error is not None]
    if not known:
        return None
    error = sum(known[1:], start=known[0])
    values = [np.asarray(a.value) for a in arguments]
    values = [v.astype(np.int8) if v.dtype.kind == "b" else v for v in values]
    distance = np.abs(values[0] - values[1] if len(values) == 2 else values[0])
    undecided = (distance <= error) & (error > 0)
    return np.where(undecided, UNDECIDED * (2 if len(values) == 1 else 1), 0.0)


def _where_error(condition: Tensor, a: Tensor, b: Tensor) -> np.ndarray | None:
    """The chosen operand's; both and their distance where the condition is undecided."""
    if condition.error is None and a.error is None and b.error is None:
        return None
    chosen = np.where(np.asarray(condition.value) != 0, a.errors, b.errors)
    if condition.error is None:
        return chosen
    either = np.abs(a.value - b.value) + np.maximum(a.errors, b.errors)
    return np.where(condition.error > 0, either, chosen)


def _tangent_error(tangent: Any, arguments: Sequence[Tensor], out: np.ndarray) -> np.ndarray:
    """The largest move along real and imaginary errors of each operand."""
    values = [a.value for a in arguments]
    total = np.zeros(out.shape)
    for position, argument in enumerate(arguments):
        for phase in (1.0, 1j) if np.iscomplexobj(argument.value) else (1.0,):
            moved: list[Any] = [0.0] * len(arguments)
            moved[position] = phase * argument.errors
            total = total + SLACK * np.abs(tangent(_call, moved, *values, out))
    return total
