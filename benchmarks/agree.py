"""Whether a contestant computes what the oracle does; nobody is timed before.

Differences are norms relative to the oracle's. The bound is generous: it tells a wrong result from
rounding, the tests hold ours to a strict one.
"""

from __future__ import annotations

import numpy as np

from benchmarks.problems import Problem
from benchmarks.reference import Outcome

TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


class Wrong(RuntimeError):
    """A contestant's result is not the oracle's."""


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference relative to that of what is expected."""
    if found.shape != expected.shape:
        return float("inf")
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found.astype(np.float64) - expected)) / (norm or 1.0)


def check(problem: Problem, found: Outcome, expected: Outcome, partial: bool = False) -> float:
    """The largest difference of all results.

    ``partial``: gradients may be missing (the dense layer has other parameters).
    Raises: Wrong if a difference is above the tolerance, not a number, or a gradient is missing.
    """
    results = {"the output": (found.value, expected.value)}
    for name, gradient in expected.gradients.items():
        if name in found.gradients:
            results[f"the gradient of {name}"] = (found.gradients[name], gradient)
        elif not partial:
            raise Wrong(f"there is no gradient of {name}")
    worst = 0.0
    for what, (own, oracle) in results.items():
        off = difference(own, oracle)
        if not off <= TOLERANCE[problem.cell.dtype]:
            raise Wrong(f"{what} is off by {off:.1e} of its norm")
        worst = max(worst, off)
    return worst
