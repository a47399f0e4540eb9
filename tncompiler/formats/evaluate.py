"""Networks of cores evaluated in double precision, for decompositions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tncompiler.api import compile as compile_network
from tncompiler.ir import algebra
from tncompiler.ir.expressions import Expr, Leaf, replace_leaves, walk


def evaluate(expr: Expr, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of an expression of parameters, computed at the arrays' common dtype."""
    dtype = np.result_type(*(array.dtype for array in arrays.values())).name
    value: np.ndarray = _compiled(bare(expr), dtype)(parameters=dict(arrays))
    return value


@lru_cache(maxsize=64)
def _compiled(expr: Expr, dtype: str) -> Any:
    return compile_network(expr, framework="numpy", backend="numpy", dtype=dtype, seed=0)


def bare(expr: Expr) -> Expr:
    """The expression with parameters that have neither a dtype nor initial values of their own."""
    own = [n for n in walk(expr) if isinstance(n, Leaf) and n.kind == "param"]
    return replace_leaves(
        expr, {leaf: algebra.leaf(leaf.name, leaf.indices, kind="param") for leaf in own}
    )
