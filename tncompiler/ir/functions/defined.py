"""Elementwise functions that users define, in terms of others and with derivatives of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError, NameClash
from tncompiler.ir.expressions import Expr
from tncompiler.ir.functions import FUNCTIONS, add_function, function
from tncompiler.ir.functions.recipe import Recipe, read_recipe
from tncompiler.ir.functions.rule import Elementwise
from tncompiler.ir.names import check_leaf_name
from tncompiler.ir.origin import call_site


def elementwise(
    name: str, forward: Callable[..., Any], derivative: Callable[..., Any]
) -> Callable[..., Expr]:
    """An elementwise function of one's own, for every backend, with the derivative that is given.

    ``forward`` takes as many scalar expressions as the function has operands and says what it
    computes, in terms of numbers, operators and functions of tnc; ``derivative`` takes the same and
    gives the derivative by the operand, or a tuple of those by each operand (None: it is zero).
    Nothing but expressions is kept of either, so what is compiled, saved or sent elsewhere runs no
    code of the user; where a JSON text that uses it is read, it must have been defined before.

        mish = tnc.elementwise("mish", lambda x: x * tnc.tanh(tnc.softplus(x)), …)

    Raises: NameClash for a name that tnc or another definition uses; ArgumentError if forward or
    derivative are no functions of numbers.
    """
    check_leaf_name(name, "an elementwise function")
    if not callable(forward) or not callable(derivative):
        raise ArgumentError(
            f"elementwise {name!r} takes two callables",
            where=call_site(),
            fix="give forward and derivative as functions of expressions",
        )
    arity = len(inspect.signature(forward).parameters)
    arguments = [algebra.leaf(f"operand{k}", (), kind="input") for k in range(arity)]
    value = read_recipe(algebra.as_expr(forward(*arguments)), arguments, name)
    slopes = _slopes(derivative(*arguments), arguments, name)
    _register(_rule(name, arity, value, slopes))

    def apply(*operands: Any) -> Expr:
        return algebra.elementwise(name, *operands)

    apply.__name__ = name
    return apply


def _slopes(found: Any, arguments: Sequence[Expr], name: str) -> tuple[Recipe | None, ...]:
    given = found if isinstance(found, tuple) else (found,)
    if len(given) != len(arguments):
        raise ArgumentError(
            f"elementwise {name!r} has {len(arguments)} operands and {len(given)} derivatives",
            where=call_site(),
            fix="give one for each operand",
        )
    return tuple(
        None if slope is None else read_recipe(algebra.as_expr(slope), arguments, name)
        for slope in given
    )


def _rule(name: str, arity: int, value: Recipe, slopes: tuple[Recipe | None, ...]) -> Elementwise:
    def reference(*operands: Any) -> Any:
        made = value(lambda called, *given: function(called).reference(*given), *operands)
        return np.broadcast_to(made, np.broadcast_shapes(*(np.shape(x) for x in operands)))

    def partial(slope: Recipe) -> Callable[..., Any]:
        return lambda call, *operands: slope(call, *operands[:-1])

    return Elementwise(
        name,
        arity,
        reference,
        numpy="",
        torch="",
        partials=tuple(None if slope is None else partial(slope) for slope in slopes),
        domain=("float",),
        recipe=value,
        slopes=slopes,
    )


def _register(rule: Elementwise) -> None:
    if rule.name in FUNCTIONS:
        raise _clash(rule.name)
    known = add_function(rule)  # of two threads, one comes first
    if (known.arity, known.recipe, known.slopes) != (rule.arity, rule.recipe, rule.slopes):
        raise _clash(rule.name)


def _clash(name: str) -> NameClash:
    return NameClash(
        f"there is another elementwise function {name!r}",
        where=call_site(),
        fix="give this one a name of its own",
    )
