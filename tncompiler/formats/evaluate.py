"""Networks of cores evaluated in float64, for decompositions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tncompiler.api import compile as compile_network
from tncompiler.ir.expressions import Expr


def evaluate(expr: Expr, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of an expression of parameters, computed at the arrays' common dtype."""
    dtype = np.result_type(*(array.dtype for array in arrays.values())).name
    run = compile_network(expr, framework="numpy", dtype=dtype, seed=0)
    value: np.ndarray = run(parameters=dict(arrays))
    return value
