"""tncompiler: a symbolic tensor-network graph compiler.

Importing it loads neither torch nor triton; they load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name → module that holds it; loaded on first use
_PUBLIC: dict[str, str] = {
    **dict.fromkeys(
        [
            "Index",
            "abs",
            "concat",
            "constant",
            "contract",
            "cos",
            "delta",
            "environment",
            "equal",
            "erf",
            "exp",
            "expm1",
            "from_json",
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
        ],
        "tncompiler.dsl",
    ),
    "compile": "tncompiler.compiler",
    "plan": "tncompiler.compiler",
    "PlanOptions": "tncompiler.planning.options",
    "ContractionPlan": "tncompiler.planning.plan",
    "TncError": "tncompiler.ir.errors",
}

_MODULES = ("backends", "draw", "ir", "planning")

__all__ = [*sorted(_PUBLIC), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"tncompiler.{name}")
    raise AttributeError(f"module 'tncompiler' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
