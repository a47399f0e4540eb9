"""The language: what users write to say what to compute. Expressions are lazy and immutable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import sympy

from tncompiler.ir import algebra
from tncompiler.ir.arange import arange
from tncompiler.ir.derivatives import environment, grad, jvp
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import INITIALIZERS, Expr, Initializer, Leaf
from tncompiler.ir.functions.defined import elementwise
from tncompiler.ir.gather_nodes import gather, scatter_add, scatter_max
from tncompiler.ir.index import Index, indices
from tncompiler.ir.names import check_leaf_name
from tncompiler.ir.origin import call_site
from tncompiler.ir.serialize import from_json
from tncompiler.ir.sizes import size_symbol
from tncompiler.ir.windowing import window

__all__ = [
    "Index",
    "abs",
    "arange",
    "concat",
    "constant",
    "contract",
    "cos",
    "delta",
    "elementwise",
    "environment",
    "equal",
    "erf",
    "exp",
    "expm1",
    "from_json",
    "gather",
    "gelu",
    "grad",
    "greater",
    "greater_equal",
    "indices",
    "input",
    "jvp",
    "layer_norm",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "maximum",
    "minimum",
    "not_equal",
    "ones",
    "param",
    "reciprocal",
    "relu",
    "rsqrt",
    "scatter_add",
    "scatter_max",
    "scope",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "size",
    "softmax",
    "softplus",
    "sqrt",
    "stack",
    "stop_gradient",
    "tanh",
    "where",
    "window",
]

_prefix: ContextVar[str] = ContextVar("tncompiler_scope", default="")


def scope(name: str) -> contextlib.AbstractContextManager[None]:
    """Prefix the names of leaves declared inside: `with tnc.scope("fc1"):` makes `fc1.G1`."""
    return _scope(check_leaf_name(name, "a scope"))


@contextlib.contextmanager
def _scope(name: str) -> Iterator[None]:
    token = _prefix.set(f"{_prefix.get()}{name}.")
    try:
        yield
    finally:
        _prefix.reset(token)


def _scoped(name: str) -> str:
    return _prefix.get() + name if isinstance(name, str) else name


def size(name: str) -> sympy.Symbol:
    """An unknown size to share between indices: `D = tnc.size("D")`."""
    return size_symbol(check_leaf_name(name, "a size"))


def input(name: str, *axes: Index, dtype: object = None) -> Leaf:
    """Data that a call supplies, with one axis per index, in this order."""
    return algebra.leaf(_scoped(name), axes, kind="input", dtype=dtype)


def param(name: str, *axes: Index, init: Initializer | None = None, dtype: object = None) -> Leaf:
    """A trainable tensor. Naming it again, with other indices of the same sizes, shares it.

    ``init`` is a name ("normal", "zeros", "ones", "eye"), an array, or a callable (shape) → array;
    without one, the variance is chosen so that the network keeps the variance of its inputs.
    """
    if hasattr(init, "__array__") and not isinstance(init, np.ndarray) and not callable(init):
        init = np.asarray(init)
    known = init is None or callable(init) or isinstance(init, np.ndarray)
    if not known and not (isinstance(init, str) and init in INITIALIZERS):
        raise ArgumentError(
            f"param {name!r}: there is no initialization {init!r:.40}",
            where=call_site(),
            fix=f"choose one of {', '.join(INITIALIZERS)}, or give a callable or an array",
        )
    return algebra.leaf(_scoped(name), axes, kind="param", dtype=dtype, init=init)


def constant(name: str, *axes: Index, value: Any, dtype: object = None) -> Leaf:
    """A fixed tensor; it becomes a buffer of the compiled module."""
    return algebra.leaf(_scoped(name), axes, kind="constant", dtype=dtype, value=value)


delta, ones, contract = algebra.delta, algebra.ones, algebra.contract


def stack(parts: Sequence[Expr], index: Index) -> Expr:
    """Tensors of the same indices side by side along a new first index."""
    return algebra.stack(parts, index)


def concat(parts: Sequence[Expr], index: Index) -> Expr:
    """Tensors one after the other along the axis that each calls by `index`'s name."""
    return algebra.concat(parts, index)


def relu(t: Expr) -> Expr:
    """max(t, 0)."""
    return algebra.elementwise("relu", t)


def gelu(t: Expr) -> Expr:
    """t times the normal distribution function of t (the exact form)."""
    return algebra.elementwise("gelu", t)


def silu(t: Expr) -> Expr:
    """t * sigmoid(t)."""
    return algebra.elementwise("silu", t)


def softplus(t: Expr) -> Expr:
    """log(1 + exp(t))."""
    return algebra.elementwise("softplus", t)


def sigmoid(t: Expr) -> Expr:
    """1 / (1 + exp(-t))."""
    return algebra.elementwise("sigmoid", t)


def tanh(t: Expr) -> Expr:
    """Hyperbolic tangent."""
    return algebra.elementwise("tanh", t)


def exp(t: Expr) -> Expr:
    """Exponential."""
    return algebra.elementwise("exp", t)


def expm1(t: Expr) -> Expr:
    """exp(t) - 1, exact near 0."""
    return algebra.elementwise("expm1", t)


def log(t: Expr) -> Expr:
    """Natural logarithm."""
    return algebra.elementwise("log", t)


def log1p(t: Expr) -> Expr:
    """log(1 + t), exact near 0."""
    return algebra.elementwise("log1p", t)


def sqrt(t: Expr) -> Expr:
    """Square root."""
    return algebra.elementwise("sqrt", t)


def rsqrt(t: Expr) -> Expr:
    """1 / sqrt(t)."""
    return algebra.elementwise("rsqrt", t)


def reciprocal(t: Expr) -> Expr:
    """1 / t."""
    return algebra.elementwise("reciprocal", t)


def sin(t: Expr) -> Expr:
    """Sine."""
    return algebra.elementwise("sin", t)


def cos(t: Expr) -> Expr:
    """Cosine."""
    return algebra.elementwise("cos", t)


def erf(t: Expr) -> Expr:
    """The error function."""
    return algebra.elementwise("erf", t)


def abs(t: Expr) -> Expr:
    """Absolute value; its gradient at 0 is 0."""
    return algebra.elementwise("abs", t)


def sign(t: Expr) -> Expr:
    """-1, 0 or 1; it has no gradient."""
    return algebra.elementwise("sign", t)


def maximum(a: Any, b: Any) -> Expr:
    """The larger of two, elementwise; a tie halves the gradient."""
    return algebra.elementwise("maximum", a, b)


def minimum(a: Any, b: Any) -> Expr:
    """The smaller of two, elementwise; a tie halves the gradient."""
    return algebra.elementwise("minimum", a, b)


def less(a: Any, b: Any) -> Expr:
    """a < b, elementwise, as booleans."""
    return algebra.elementwise("less", a, b)


def less_equal(a: Any, b: Any) -> Expr:
    """a <= b, elementwise, as booleans."""
    return algebra.elementwise("less_equal", a, b)


def greater(a: Any, b: Any) -> Expr:
    """a > b, elementwise, as booleans."""
    return algebra.elementwise("greater", a, b)


def greater_equal(a: Any, b: Any) -> Expr:
    """a >= b, elementwise, as booleans."""
    return algebra.elementwise("greater_equal", a, b)


def equal(a: Any, b: Any) -> Expr:
    """Elementwise equality, as booleans (`a == b` compares two expressions as a whole)."""
    return algebra.elementwise("equal", a, b)


def not_equal(a: Any, b: Any) -> Expr:
    """Elementwise inequality, as booleans."""
    return algebra.elementwise("not_equal", a, b)


def where(condition: Any, a: Any, b: Any) -> Expr:
    """a where the condition holds, else b."""
    return algebra.elementwise("where", condition, a, b)


def stop_gradient(t: Expr) -> Expr:
    """The same values, through which no gradient flows."""
    return algebra.elementwise("stop", t)


def _over(t: Expr, over: Any) -> tuple[Any, ...]:
    if not isinstance(t, Expr):
        raise ArgumentError(
            f"this takes an expression, not a {type(t).__name__}",
            where=call_site(),
            fix="declare arrays with tnc.input, tnc.param or tnc.constant",
        )
    if not isinstance(over, Index | str | tuple | list):
        raise ArgumentError(
            f"over= is {over!r:.40}", where=call_site(), fix="give an index or a tuple of indices"
        )
    return (over,) if isinstance(over, Index | str) else tuple(over)


def softmax(t: Expr, over: Index | Iterable[Index]) -> Expr:
    """exp(t) / sum exp(t) over one index or several, shifted by the maximum."""
    bound = _over(t, over)
    weights = exp(t - stop_gradient(t.max(*bound)))
    return weights / weights.sum(*bound)


def logsumexp(t: Expr, over: Index | Iterable[Index]) -> Expr:
    """log sum exp(t), shifted by the maximum."""
    bound = _over(t, over)
    top = stop_gradient(t.max(*bound))
    return log(exp(t - top).sum(*bound)) + top


def log_softmax(t: Expr, over: Index | Iterable[Index]) -> Expr:
    """t - logsumexp(t), shifted by the maximum."""
    bound = _over(t, over)
    shifted = t - stop_gradient(t.max(*bound))
    return shifted - log(exp(shifted).sum(*bound))


def layer_norm(
    t: Expr,
    over: Index | Iterable[Index],
    *,
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
) -> Expr:
    """(t - mean) / sqrt(variance + eps) over one index or several, then scaled and shifted."""
    bound = _over(t, over)
    centered = t - t.mean(*bound)
    variance = (centered * centered).mean(*bound)
    normal = centered * rsqrt(variance + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias
