"""How elementwise functions are written in a kernel. One table; what is not in it runs as aten.

Templates are over ``{0}``, ``{1}``, …, real numbers of the dtype that the step works in. Complex
numbers are pairs, and only the functions in COMPLEX take them.
"""

from __future__ import annotations

from tncompiler.ir.dtypes import kind

# `maximum` lets NaN through, as torch does; `where` takes a number as its condition
FUNCTIONS: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "reciprocal": "1.0 / {0}",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "1.0 / tl.sqrt({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "tanh": "tanh({0})",
    "erf": "tl.erf({0})",
    "sigmoid": "sigmoid({0})",
    "relu": "tl.maximum({0}, 0.0, propagate_nan=tl.PropagateNan.ALL)",
    "relu_gate": "tl.where({1} > 0, {0}, 0.0)",
    "gelu": "0.5 * {0} * (1.0 + tl.erf(0.7071067811865476 * {0}))",
    "gelu_gate": "{0} * (0.5 + 0.5 * tl.erf(0.7071067811865476 * {1})"
    " + 0.3989422804014327 * {1} * tl.exp(-0.5 * {1} * {1}))",
    "silu": "{0} * sigmoid({0})",
    "softplus": "softplus({0})",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "where": "tl.where({0} != 0, {1}, {2})",
    "abs": "tl.abs({0})",
    "conj": "{0}",
    "real": "{0}",
    "project": "{0}",
    "stop": "{0}",
}
HELPERS = ("sigmoid", "softplus", "tanh")  # of the runtime module
COMPLEX = frozenset(("add", "sub", "mul", "neg", "conj", "real", "imag", "project", "stop", "cast"))
SINGLE_ONLY = frozenset(("tanh", "softplus", "gelu", "gelu_gate"))  # written for float32
ZERO_AT_ZERO = frozenset(
    ("abs", "add", "cast", "conj", "erf", "gelu", "imag", "mul", "neg", "project", "real", "relu")
) | {"silu", "sin", "sqrt", "stop", "sub", "tanh"}


def is_spelled(name: str, dtypes: tuple[str, ...]) -> bool:
    """Whether a kernel can apply the function to numbers of these dtypes."""
    kinds = {kind(dtype) for dtype in dtypes}
    if not kinds <= {"float", "complex", "bool"}:
        return False
    if "complex" in kinds:
        return name in COMPLEX and "bool" not in kinds
    if name in SINGLE_ONLY and "float64" in dtypes:
        return False
    return name in FUNCTIONS
