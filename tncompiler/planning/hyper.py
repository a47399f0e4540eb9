"""cotengra's hyper-search, reproducible: its own trials draw from unseeded generators.

Two methods are registered with it under our names, each with a seed among the parameters that the
search draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cotengra
import cotengrust
from cotengra.core import jitter_dict
from cotengra.hyperoptimizers.hyper import get_hyper_space, register_hyper_function
from cotengra.pathfinders.path_labels import labels_to_tree

_SEED = {"type": "INT", "min": 0, "max": 2**31 - 1}


def hyper_order(
    terms: list[list[str]],
    out: list[str],
    sizes: dict[str, int],
    *,
    minimize: str,
    trials: int,
    seed: int,
    progress: bool,
) -> Sequence[Sequence[int]]:
    """The best SSA path of `trials` trials; the same for the same seed."""
    optimizer = cotengra.HyperOptimizer(
        methods=list(_methods()),
        minimize=minimize,
        max_repeats=trials,
        parallel=False,
        seed=seed,
        progbar=progress,
        optlib="random",
        on_trial_error="raise",
    )
    path: Sequence[Sequence[int]] = optimizer.search(terms, out, sizes).get_ssa_path()
    return path


@cache
def _methods() -> tuple[str, ...]:
    """Registers our methods, once."""
    for name, trial in (("greedy", _greedy), ("labels", _labels)):
        register_hyper_function(f"tnc-{name}", trial, {**get_hyper_space()[name], "seed": _SEED})
    return ("tnc-greedy", "tnc-labels")


def _greedy(
    inputs: Any, output: Any, sizes: Any, *, random_strength: float, seed: int, **options: Any
) -> Any:
    disturbed = jitter_dict(sizes, random_strength, seed)
    path = cotengrust.optimize_greedy(inputs, output, disturbed, seed=seed, use_ssa=True, **options)
    return cotengra.ContractionTree.from_path(inputs, output, sizes, ssa_path=path)


def _labels(inputs: Any, output: Any, sizes: Any, **options: Any) -> Any:
    return labels_to_tree.trial_fn(inputs, output, sizes, super_optimize="greedy", **options)
