"""Exponentials, logarithms, roots, trigonometric functions."""

from __future__ import annotations

import math

import numpy as np

from tncompiler.ir.functions.rule import Elementwise

_REAL = ("float",)


def erf_reference(x: np.ndarray) -> np.ndarray:
    values = [math.erf(v) for v in np.asarray(x, dtype=np.float64).ravel()]
    return np.array(values, dtype=np.float64).reshape(np.shape(x))


EXP = Elementwise(
    "exp", 1, np.exp, "np.exp({0})", "torch.exp({0})", partials=(lambda call, x, out: out,)
)
LOG = Elementwise(
    "log",
    1,
    np.log,
    "np.log({0})",
    "torch.log({0})",
    partials=(lambda call, x, out: call("reciprocal", x),),
)
LOG1P = Elementwise(
    "log1p",
    1,
    np.log1p,
    "np.log1p({0})",
    "torch.log1p({0})",
    partials=(lambda call, x, out: call("reciprocal", x + 1.0),),
)
EXPM1 = Elementwise(
    "expm1",
    1,
    np.expm1,
    "np.expm1({0})",
    "torch.expm1({0})",
    partials=(lambda call, x, out: out + 1.0,),
)
SQRT = Elementwise(
    "sqrt",
    1,
    np.sqrt,
    "np.sqrt({0})",
    "torch.sqrt({0})",
    partials=(lambda call, x, out: 0.5 / out,),
)
RSQRT = Elementwise(
    "rsqrt",
    1,
    lambda x: 1.0 / np.sqrt(x),
    "rsqrt({0})",
    "torch.rsqrt({0})",
    partials=(lambda call, x, out: -0.5 * out / x,),
    helper="rsqrt",
)
SIN = Elementwise(
    "sin",
    1,
    np.sin,
    "np.sin({0})",
    "torch.sin({0})",
    partials=(lambda call, x, out: call("cos", x),),
)
COS = Elementwise(
    "cos",
    1,
    np.cos,
    "np.cos({0})",
    "torch.cos({0})",
    partials=(lambda call, x, out: -call("sin", x),),
)
TANH = Elementwise(
    "tanh",
    1,
    np.tanh,
    "np.tanh({0})",
    "torch.tanh({0})",
    partials=(lambda call, x, out: 1.0 - out * out,),
)
ERF = Elementwise(
    "erf",
    1,
    erf_reference,
    "erf({0})",
    "torch.erf({0})",
    partials=(lambda call, x, out: (2.0 / math.sqrt(math.pi)) * call("exp", -(x * x)),),
    domain=_REAL,
    scipy=("erf",),
)
