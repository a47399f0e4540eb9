"""Fewest flops: our order beside that of cotengra's own default, at equal trials and seed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import cotengra

from benchmarks.plan_race import only_network
from tncompiler.planning.candidates import Network
from tncompiler.planning.choose import best_order
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair, letter

TRIALS = 32
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Duel:
    """Multiplications by cotengra's own count."""

    network: str
    seed: int
    ours: float
    cotengra: float


def compare_flops(name: str, expr: Any) -> list[Duel]:
    """One network, by several seeds, forward only."""
    network = replace(only_network(expr), active=frozenset())
    inputs = [tuple(letter(k) for k in sorted(term)) for term in network.terms]
    output = tuple(letter(k) for k in sorted(network.output))
    sizes = {letter(label): size for label, size in network.sizes.items()}
    duels = []
    for seed in SEEDS:
        ours = _ours(network, seed)
        tree = cotengra.ContractionTree.from_path(inputs, output, sizes, ssa_path=ours)
        theirs = _default(seed).search(inputs, output, sizes)
        duels.append(Duel(name, seed, float(tree.total_flops()), float(theirs.total_flops())))
    return duels


def _ours(network: Network, seed: int) -> tuple[Pair, ...]:
    return best_order(network, PlanOptions(minimize="flops", trials=TRIALS, seed=seed))


def _default(seed: int) -> Any:
    """What cotengra takes where nothing is said, but by flops, and without its time limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimisers that are not installed
        return cotengra.AutoOptimizer(
            minimize="flops",
            cache=False,
            max_repeats=TRIALS,
            max_time=None,
            parallel=False,
            seed=seed,
        )
