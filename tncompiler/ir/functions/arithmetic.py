"""Sums, quotients, powers, extrema. Products are contractions."""

from __future__ import annotations

import numpy as np

from tncompiler.ir.functions.rule import Call, Elementwise, Value

_NUMBERS = ("int", "float", "complex")
_ORDERED = ("bool", "int", "float")


def _share(call: Call, x: Value, y: Value, wins: str) -> Value:
    """1 where x wins over y, 1/2 where they tie, else 0."""
    return call("where", call("equal", x, y), 0.5, call("where", call(wins, x, y), 1.0, 0.0))


ADD = Elementwise(
    "add",
    2,
    np.add,
    "{0} + {1}",
    "{0} + {1}",
    partials=(lambda call, x, y, out: 1.0, lambda call, x, y, out: 1.0),
    domain=("bool", *_NUMBERS),
)
SUB = Elementwise(
    "sub",
    2,
    np.subtract,
    "{0} - {1}",
    "{0} - {1}",
    partials=(lambda call, x, y, out: 1.0, lambda call, x, y, out: -1.0),
    domain=_NUMBERS,
)
DIV = Elementwise(
    "div",
    2,
    np.divide,
    "{0} / {1}",
    "{0} / {1}",
    partials=(
        lambda call, x, y, out: call("reciprocal", y),
        lambda call, x, y, out: -(out / y),
    ),
)
NEG = Elementwise(
    "neg",
    1,
    np.negative,
    "-{0}",
    "-{0}",
    partials=(lambda call, x, out: -1.0,),
    domain=_NUMBERS,
)
RECIPROCAL = Elementwise(
    "reciprocal",
    1,
    np.reciprocal,
    "1.0 / {0}",
    "torch.reciprocal({0})",
    partials=(lambda call, x, out: -(out * out),),
)
POW = Elementwise(
    "pow",
    2,
    np.power,
    "np.power({0}, {1})",
    "torch.pow({0}, {1})",
    partials=(
        lambda call, x, y, out: y * call("pow", x, y - 1.0),
        lambda call, x, y, out: call("where", call("equal", out, 0.0), 0.0, out * call("log", x)),
    ),
    domain=("float",),
)
MAXIMUM = Elementwise(
    "maximum",
    2,
    np.maximum,
    "np.maximum({0}, {1})",
    "torch.maximum({0}, {1})",
    partials=(
        lambda call, x, y, out: _share(call, x, y, "greater"),
        lambda call, x, y, out: _share(call, y, x, "greater"),
    ),
    domain=_ORDERED,
)
MINIMUM = Elementwise(
    "minimum",
    2,
    np.minimum,
    "np.minimum({0}, {1})",
    "torch.minimum({0}, {1})",
    partials=(
        lambda call, x, y, out: _share(call, x, y, "less"),
        lambda call, x, y, out: _share(call, y, x, "less"),
    ),
    domain=_ORDERED,
)
