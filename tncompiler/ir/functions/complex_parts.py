"""Functions that are not holomorphic, with torch's gradient convention.

For a real loss L the gradient is ∂L/∂Re + i·∂L/∂Im, and a real operand receives a real gradient.
"""

from __future__ import annotations

import numpy as np

from tncompiler.ir.functions.rule import Call, Elementwise, Value

_ANY = ("int", "float", "complex")


def _unit(call: Call, x: Value, out: Value) -> Value:
    """x / |x|, and 0 at 0."""
    zero = call("equal", out, 0.0)
    return call("where", zero, 0.0, x) / call("where", zero, 1.0, out)


ABS = Elementwise(
    "abs",
    1,
    np.abs,
    "np.abs({0})",
    "torch.abs({0})",
    tangent=lambda call, t, x, out: call("real", call("conj", _unit(call, x, out)) * t[0]),
    adjoint=lambda call, ct, x, out: (call("real", ct) * _unit(call, x, out),),
    result="real",
    domain=_ANY,
)
CONJ = Elementwise(
    "conj",
    1,
    np.conj,
    "np.conj({0})",
    "torch.conj({0})",
    tangent=lambda call, t, x, out: call("conj", t[0]),
    adjoint=lambda call, ct, x, out: (call("conj", ct),),
    domain=_ANY,
)
REAL = Elementwise(
    "real",
    1,
    np.real,
    "np.real({0})",
    "torch.real({0})",
    tangent=lambda call, t, x, out: call("real", t[0]),
    adjoint=lambda call, ct, x, out: (call("project", call("real", ct), x),),
    result="real",
    domain=_ANY,
)
IMAG = Elementwise(
    "imag",
    1,
    np.imag,
    "np.imag({0})",
    "torch.imag({0})",
    tangent=lambda call, t, x, out: call("imag", t[0]),
    adjoint=lambda call, ct, x, out: (call("project", 1j * call("real", ct), x),),
    result="real",
    domain=_ANY,
)
PROJECT = Elementwise(  # x as a number of the kind of `like`: its real part, or itself as complex
    "project",
    2,
    lambda x, like: x if np.iscomplexobj(like) else np.real(x),
    "{0}",
    "{0}",
    tangent=lambda call, t, x, like, out: call("project", t[0], like),
    adjoint=lambda call, ct, x, like, out: (call("project", ct, x), None),
    domain=_ANY,
)
STOP = Elementwise(
    "stop",
    1,
    lambda x: x,
    "{0}",
    "{0}.detach()",
    partials=(None,),
    domain=("bool", *_ANY),
)
UNIT_COTANGENT = Elementwise(  # 1 for a real number; lowering refuses a complex one
    "unit_cotangent",
    1,
    np.ones_like,
    "np.ones_like({0})",
    "torch.ones_like({0})",
    partials=(None,),
    domain=("float",),
)
