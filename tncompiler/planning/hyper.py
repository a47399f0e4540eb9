"""Trials of a search as values: drawn from a seed in advance, run wherever, equal wherever.

cotengra's own trials draw from unseeded generators and its hyper-optimizer asks for the next one
when the last is back. Here every setting, its seed included, follows from the options alone, so
that neither the number of workers nor which of them is done first changes a plan.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from random import Random
from typing import Any

import cotengrust

from tncompiler.planning.candidates import Network, candidate_orders
from tncompiler.planning.order import Pair, spelled, split_path

Order = tuple[Pair, ...]
logger = logging.getLogger("tncompiler.planning")

OBJECTIVES: Mapping[str, str] = {"time": "combo-32", "flops": "flops", "memory": "write"}
_SEED = {"type": "INT", "min": 0, "max": 2**31 - 1}
_DRAWN = 128  # trials at a time
_SUBTREE = 8  # tensors of a subtree that cotengra reorders exactly after each trial
_LARGER_SUBTREE = 9  # and of those of the best trials, at three times the time
# how subtrees are found and taken up, in turn: what one leaves the next improves
_TURNS = (("bfs", "max"), ("dfs", "max"), ("bfs", "random"), ("dfs", "random"))


@dataclass(frozen=True)
class Trial:
    """One search for orders of a network: a method of METHODS, its settings, where it starts.

    It holds what JSON can hold, so that it can be sent to another process.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    start: Order = ()


def draw_trials(count: int, seed: int) -> Iterator[Trial]:
    """`count` trials of cotengra's default methods, their settings spread over its ranges.

    Drawn as they are asked for, some at a time: a search that is cut pays for no others.
    """
    from cotengra.hyperoptimizers.hyper import get_hyper_space
    from cotengra.hyperoptimizers.hyper_random import RandomSampler

    methods = ["greedy", "labels", *(["kahypar"] if find_spec("kahypar") else [])]
    spaces = {name: {**get_hyper_space()[name], "seed": _SEED} for name in methods}
    generator = Random(seed)
    for start in range(0, count, _DRAWN):
        drawn = min(_DRAWN, count - start)
        sampler = RandomSampler(methods, spaces, n_samples=drawn // len(methods), seed=generator)
        yield from (Trial(*sampler.ask()) for _ in range(drawn))


def numbered_trials(count: int, seed: int) -> Iterator[Trial]:
    """The trials that `draw_trials` draws, each drawn where it runs.

    Drawing imports cotengra, which takes a second that nothing can cut short.
    """
    for number in range(count):
        yield Trial("drawn", {"of": count, "seed": seed, "number": number})


class _Draws:
    """The trials of one search, drawn as far as somebody asked; for threads too."""

    def __init__(self, count: int, seed: int) -> None:
        self.known: list[Trial] = []
        self.following = draw_trials(count, seed)
        self.lock = threading.Lock()

    def at(self, number: int) -> Trial:
        with self.lock:
            self.known += islice(self.following, max(number + 1 - len(self.known), 0))
            return self.known[number]


_draws_of = lru_cache(maxsize=2)(_Draws)


def refining(orders: Sequence[Order]) -> list[Trial]:
    """Trials that go on from orders that were found."""
    return [Trial("refine", {"subtree": _LARGER_SUBTREE}, order) for order in orders]


def run_trial(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    """The orders that a trial finds, each as soon as it is found."""
    yield from METHODS[trial.method](network, minimize, trial)


def collect_trial(network: Network, minimize: str, trial: Trial) -> list[Order]:
    """`run_trial` for executors, which send whole results back."""
    return list(run_trial(network, minimize, trial))


# ---------------------------------------------------------------------------- the methods


def greedy_order(network: Network, seed: int) -> Order:
    """One greedy run: what is always there."""
    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    path = cotengrust.optimize_greedy(inputs, output, sizes, seed=seed, use_ssa=True)
    return split_path(path, len(inputs))


def _greedy(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    yield greedy_order(network, trial.settings["seed"])


def _random_greedy(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    path, _ = cotengrust.optimize_random_greedy_track_flops(
        inputs, output, sizes, use_ssa=True, **trial.settings
    )
    yield split_path(path, len(inputs))


def _exact(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    objective = OBJECTIVES[minimize]
    path = cotengrust.optimize_optimal(inputs, output, sizes, minimize=objective, use_ssa=True)
    yield split_path(path, len(inputs))


def _candidates(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    yield from candidate_orders(network, trial.settings["trials"], trial.settings["seed"])


def _numbered(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    settings = trial.settings
    drawn = _draws_of(settings["of"], settings["seed"]).at(settings["number"])
    yield from run_trial(network, minimize, drawn)


def _drawn(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    """A trial of cotengra's hyper-search, reconfigured; one that fails finds nothing."""
    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    integers = {name: int(size) for name, size in sizes.items()}
    try:
        tree = _TREES[trial.method](inputs, output, integers, **trial.settings)
        _reconfigure(tree, _SUBTREE, minimize)
    except Exception as error:  # of cotengra's methods, for settings that do not suit a network
        logger.debug("the trial %s failed: %r", trial, error)
        return
    yield split_path(tree.get_ssa_path(), len(inputs))


def _refine(network: Network, minimize: str, trial: Trial) -> Iterator[Order]:
    """An order that was found, reconfigured."""
    import cotengra

    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    integers = {name: int(size) for name, size in sizes.items()}
    tree = cotengra.ContractionTree.from_path(inputs, output, integers, ssa_path=trial.start)
    _reconfigure(tree, trial.settings["subtree"], minimize)
    yield split_path(tree.get_ssa_path(), len(inputs))


def _reconfigure(tree: Any, size: int, minimize: str) -> None:
    """Make subtrees of that many tensors exact, in place, looking for them in several ways."""
    for seed, (search, select) in enumerate(_TURNS):
        tree.subtree_reconfigure_(
            subtree_size=size,
            subtree_search=search,
            select=select,
            seed=seed,
            minimize=OBJECTIVES[minimize],
        )
        tree.already_optimized.clear()


def _greedy_tree(
    inputs: Any, output: Any, sizes: Any, *, random_strength: float, seed: int, **options: Any
) -> Any:
    import cotengra
    from cotengra.core import jitter_dict

    disturbed = jitter_dict(sizes, random_strength, seed)
    path = cotengrust.optimize_greedy(inputs, output, disturbed, seed=seed, use_ssa=True, **options)
    return cotengra.ContractionTree.from_path(inputs, output, sizes, ssa_path=path)


def _labels_tree(inputs: Any, output: Any, sizes: Any, **options: Any) -> Any:
    from cotengra.pathfinders.path_labels import labels_to_tree

    return labels_to_tree.trial_fn(inputs, output, sizes, super_optimize="greedy", **options)


def _kahypar_tree(inputs: Any, output: Any, sizes: Any, **options: Any) -> Any:
    from cotengra.pathfinders.path_kahypar import kahypar_to_tree

    return kahypar_to_tree.trial_fn(inputs, output, sizes, super_optimize="greedy", **options)


_TREES: dict[str, Callable[..., Any]] = {
    "greedy": _greedy_tree,
    "labels": _labels_tree,
    "kahypar": _kahypar_tree,
}
METHODS: dict[str, Callable[[Network, str, Trial], Iterator[Order]]] = {
    "one greedy": _greedy,
    "random greedy": _random_greedy,
    "exact": _exact,
    "candidates": _candidates,
    "drawn": _numbered,
    "refine": _refine,
    **dict.fromkeys(_TREES, _drawn),
}


# ---------------------------------------------------------------------------- as data


def trial_data(trial: Trial) -> dict[str, Any]:
    """A trial as JSON holds it."""
    return {"method": trial.method, "settings": dict(trial.settings), "start": trial.start}


def trial_from(data: Mapping[str, Any]) -> Trial:
    """The trial that `trial_data` wrote."""
    return Trial(data["method"], data["settings"], order_from(data["start"]))


def network_data(network: Network) -> dict[str, Any]:
    """A network as JSON holds it."""
    return {
        "wires": [list(wire) for wire in network.wires],
        "output": sorted(network.output),
        "sizes": list(network.sizes.items()),
        "dtype": network.dtype,
        "active": sorted(network.active),
        "fixed": sorted(network.fixed),
        "cached": network.cached,
    }


def network_from(data: Mapping[str, Any]) -> Network:
    """The network that `network_data` wrote."""
    return Network(
        tuple(map(tuple, data["wires"])),
        frozenset(data["output"]),
        dict(data["sizes"]),
        data["dtype"],
        frozenset(data["active"]),
        frozenset(data["fixed"]),
        data["cached"],
    )


def order_from(data: Sequence[Sequence[int]]) -> Order:
    """Pairs as JSON holds them."""
    return tuple((a, b) for a, b in data)
