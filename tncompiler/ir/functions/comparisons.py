"""Comparisons, choice by a condition, sign. None has a derivative but the chosen operand's."""

from __future__ import annotations

from typing import Any

import numpy as np

from tncompiler.ir.functions.rule import Elementwise

_ORDERED = ("bool", "int", "float")
_ANY = ("bool", "int", "float", "complex")


def _compare(
    name: str, reference: Any, symbol: str, domain: tuple[str, ...] = _ORDERED
) -> Elementwise:
    template = f"{{0}} {symbol} {{1}}"
    return Elementwise(
        name,
        2,
        reference,
        template,
        template,
        partials=(None, None),
        result="bool",
        domain=domain,
        jumps=True,
    )


LESS = _compare("less", np.less, "<")
LESS_EQUAL = _compare("less_equal", np.less_equal, "<=")
GREATER = _compare("greater", np.greater, ">")
GREATER_EQUAL = _compare("greater_equal", np.greater_equal, ">=")
EQUAL = _compare("equal", np.equal, "==", _ANY)
NOT_EQUAL = _compare("not_equal", np.not_equal, "!=", _ANY)

WHERE = Elementwise(
    "where",
    3,
    lambda c, a, b: np.where(np.asarray(c) != 0, a, b),
    "np.where({0}, {1}, {2})",
    "torch.where({0}, {1}, {2})",
    tangent=lambda call, t, c, a, b, out: call("where", c, t[1], t[2]),
    adjoint=lambda call, ct, c, a, b, out: (
        None,
        call("where", c, ct, 0.0),
        call("where", c, 0.0, ct),
    ),
    domain=_ANY,
)
SIGN = Elementwise(
    "sign",
    1,
    np.sign,
    "np.sign({0})",
    "torch.sgn({0})",
    partials=(None,),
    domain=("int", "float"),
    jumps=True,
)
