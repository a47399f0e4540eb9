"""Different trees of one network, from the best there are to several times slower.

In: a network as the planner sees it. Out: SSA pairs: the planner's own candidates, random greedy
orders at several temperatures, and good trees with parts exchanged. Trees whose flops are far from
the least, or that hold tensors nobody would, are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import cotengrust

from tncompiler.planning.candidates import Network, candidate_orders
from tncompiler.planning.exchange import neighbours, shape_of
from tncompiler.planning.machine import load_machine
from tncompiler.planning.order import Pair, letter
from tncompiler.planning.tree_cost import tree_cost

Order = tuple[Pair, ...]
Shape = frozenset[frozenset[int]]

TREES = 16  # compared per network, or as many as there are
MOST_FLOPS = 12.0  # times the least of the pool
MOST_ELEMENTS = 2**26  # of what is held at once
_TEMPERATURES = (0.1, 0.5, 1.0, 2.0, 4.0)
_TRIES = 12  # random greedy orders at each temperature
_EXCHANGES = 60
_UNUSED = load_machine("reference").planning  # the costs taken here count, they don't predict


def sample_trees(network: Network, chosen: Collection[Order], seed: int = 0) -> list[Order]:
    """The chosen orders, and others spread evenly over the logarithm of their flops."""
    found: dict[Shape, Order] = {shape_of(pairs, len(network.terms)): pairs for pairs in chosen}
    must = len(found)
    flops = {pairs: _flops(network, pairs) for pairs in found.values()}
    most = MOST_FLOPS * min(flops.values())
    others: dict[Shape, Order] = {}
    for pairs in _pool(network, list(found.values()), seed):
        shape = shape_of(pairs, len(network.terms))
        if shape in found or shape in others:
            continue
        if _elements(network, pairs) <= MOST_ELEMENTS:
            flops[pairs] = _flops(network, pairs)
            if flops[pairs] <= most:
                others[shape] = pairs
    ranked = sorted(others.values(), key=flops.__getitem__)
    spread = _spread([math.log(flops[pairs]) for pairs in ranked], TREES - must)
    return [*found.values(), *(ranked[k] for k in spread)]


def _spread(places: Sequence[float], count: int) -> list[int]:
    """Positions of at most `count` of the ascending numbers, as evenly apart as they come."""
    if len(places) <= count:
        return list(range(len(places)))
    low, high = places[0], places[-1]
    left, taken = set(range(len(places))), []
    for k in range(count):
        wanted = low + (high - low) * k / max(count - 1, 1)
        best = min(left, key=lambda at: abs(places[at] - wanted))
        left.remove(best)
        taken.append(best)
    return sorted(taken)


def _flops(network: Network, pairs: Order) -> float:
    return tree_cost(network, pairs, "flops", _UNUSED)


def _elements(network: Network, pairs: Order) -> float:
    return tree_cost(network, pairs, "memory", _UNUSED)


def _pool(network: Network, good: Sequence[Order], seed: int) -> Iterator[Order]:
    """Many orders, repeated ones among them."""
    yield from candidate_orders(network, 32, seed)
    yield from candidate_orders(replace(network, active=frozenset()), 32, seed)
    inputs: list[list[str]] = [[letter(k) for k in sorted(term)] for term in network.terms]
    output: list[str] = [letter(k) for k in sorted(network.output)]
    sizes: dict[str, float] = {letter(k): float(n) for k, n in network.sizes.items()}
    count = len(network.terms)
    for heat in _TEMPERATURES:
        for number in range(_TRIES):
            path, _ = cotengrust.optimize_random_greedy_track_flops(
                inputs, output, sizes, 1, None, (heat, heat), None, seed + number, False, True
            )
            yield ssa_pairs(path, count)
    rng = random.Random(seed)
    for number in range(_EXCHANGES):
        pairs = good[number % len(good)]
        for _ in range(1 + number % 4):
            pairs = rng.choice([*neighbours(pairs, count)] or [pairs])
        yield pairs


def ssa_pairs(path: Sequence[Sequence[int]], count: int) -> Order:
    """An SSA path of pairs, with what it leaves apart multiplied at the end."""
    pairs = [(a, b) for a, b in path]
    used = {k for pair in pairs for k in pair}
    left = [k for k in range(count + len(pairs)) if k not in used]
    while len(left) > 1:
        pairs.append((left.pop(0), left.pop(0)))
        left.append(count + len(pairs) - 1)
    return tuple(pairs)
