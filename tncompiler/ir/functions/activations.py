"""Activation functions; formulas as in torch (gelu is the exact one)."""

from __future__ import annotations

import math

import numpy as np

from tncompiler.ir.functions.rule import Call, Elementwise, Value
from tncompiler.ir.functions.transcendental import erf_reference

_REAL = ("float",)
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def _density(call: Call, x: Value) -> Value:
    return _DENSITY * call("exp", -0.5 * (x * x))


def _gelu_slope(call: Call, x: Value) -> Value:
    return 0.5 * (1.0 + call("erf", _SQRT_HALF * x)) + x * _density(call, x)


def _gelu_gate(ct: np.ndarray, x: np.ndarray) -> np.ndarray:
    cumulative = 0.5 * (1.0 + erf_reference(_SQRT_HALF * x))
    return np.asarray(ct * (cumulative + x * _DENSITY * np.exp(-0.5 * x * x)))


def _silu_slope(call: Call, x: Value, out: Value) -> Value:
    s = call("sigmoid", x)
    return s * (1.0 + x * (1.0 - s))


SIGMOID = Elementwise(
    "sigmoid",
    1,
    _sigmoid,
    "expit({0})",
    "torch.sigmoid({0})",
    partials=(lambda call, x, out: out * (1.0 - out),),
    domain=_REAL,
    scipy=("expit",),
)
RELU = Elementwise(
    "relu",
    1,
    lambda x: np.maximum(x, 0.0),
    "np.maximum({0}, 0)",
    "torch.relu({0})",
    tangent=lambda call, t, x, out: call("relu_gate", t[0], out),
    adjoint=lambda call, ct, x, out: (call("relu_gate", ct, out),),
    domain=_REAL,
)
RELU_GATE = Elementwise(  # a cotangent where relu let its operand through; out is relu's result
    "relu_gate",
    2,
    lambda ct, out: np.where(out > 0, ct, 0.0),
    "gate({0}, {1})",
    "torch.ops.aten.threshold_backward({0}, {1}, 0.0)",
    tangent=lambda call, t, ct, out, gated: call("relu_gate", t[0], out),
    adjoint=lambda call, c, ct, out, gated: (call("relu_gate", c, out), None),
    domain=_REAL,
    helper="gate",
    jumps=True,
)
GELU = Elementwise(
    "gelu",
    1,
    lambda x: 0.5 * x * (1.0 + erf_reference(_SQRT_HALF * x)),
    "gelu({0})",
    "torch.nn.functional.gelu({0})",
    tangent=lambda call, t, x, out: call("gelu_gate", t[0], x),
    adjoint=lambda call, ct, x, out: (call("gelu_gate", ct, x),),
    domain=_REAL,
    helper="gelu",
)
GELU_GATE = Elementwise(  # a cotangent times gelu's slope at x, which libraries have in one pass
    "gelu_gate",
    2,
    _gelu_gate,
    "gelu_gate({0}, {1})",
    "gelu_gate({0}, {1})",
    partials=(
        lambda call, ct, x, out: _gelu_slope(call, x),
        lambda call, ct, x, out: ct * (_density(call, x) * (2.0 - x * x)),
    ),
    domain=_REAL,
    helper="gelu_gate",
    torch_helper="gelu_gate",
)
SILU = Elementwise(
    "silu",
    1,
    lambda x: x * _sigmoid(x),
    "{0} * expit({0})",
    "torch.nn.functional.silu({0})",
    partials=(_silu_slope,),
    domain=_REAL,
    scipy=("expit",),
)
SOFTPLUS = Elementwise(
    "softplus",
    1,
    lambda x: np.logaddexp(x, 0.0),
    "np.logaddexp({0}, 0)",
    "torch.logaddexp({0}, torch.zeros((), dtype={0}.dtype, device={0}.device))",
    partials=(lambda call, x, out: call("sigmoid", x),),
    domain=_REAL,
)
