"""Candidate orders of one network from cotengra, and what each costs forward and backward.

In: labels, sizes, which operands need gradients, which hold no data. Out: SSA pairs. The cost of a
tree is that of its products and of those that reverse-mode differentiation makes of them: for
C = A·B, one more for each of A and B that a gradient goes through.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cotengrust

from tncompiler.ir.program import Labels
from tncompiler.planning.order import Pair, letter
from tncompiler.planning.rates import Rates

Terms = frozenset[int]

EXACT_UP_TO = 9  # tensors; beyond, exact search can take seconds
POOL_UP_TO = 200  # tensors; beyond, one search, without a choice by time
_OBJECTIVES = ("flops", "write", "size", "combo-4", "combo-32", "combo-256")
_COST_MODIFIERS = (0.5, 1.0, 4.0)


@dataclass(frozen=True)
class Network:
    """One contraction as a planner sees it.

    ``terms``: the labels of each operand that has any, those that it alone carries left out;
    ``active``: operands that a gradient goes through; ``fixed``: operands that hold no data, made
    of parameters and constants alone; ``cached``: whether products of these are made once and kept.
    """

    terms: tuple[Terms, ...]
    output: Terms
    sizes: Mapping[int, int]
    dtype: str
    active: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    cached: bool = False

    @staticmethod
    def of(
        wires: Sequence[Labels],
        output: Labels,
        sizes: Mapping[int, int],
        dtype: str = "float32",
        active: Collection[int] = (),
        fixed: Collection[int] = (),
        cached: bool = False,
    ) -> Network:
        """The network of a contraction's operands, scalars left out."""
        uses: dict[int, int] = dict.fromkeys(output, 1)
        for labels in wires:
            for label in set(labels):
                uses[label] = uses.get(label, 0) + 1
        kept = [k for k, labels in enumerate(wires) if labels]
        terms = tuple(frozenset(k for k in wires[at] if uses[k] > 1) for at in kept)
        return Network(
            terms,
            frozenset(output),
            {label: max(size, 1) for label, size in sizes.items()},
            dtype,
            frozenset(new for new, old in enumerate(kept) if old in active),
            frozenset(new for new, old in enumerate(kept) if old in fixed),
            cached,
        )


# ---------------------------------------------------------------------------- what a tree costs


def tree_cost(network: Network, pairs: Sequence[Pair], minimize: str, rates: Rates) -> float:
    """Microseconds, flops, or elements held at most, of a tree with its adjoint."""
    if minimize == "memory":
        return _peak(network, pairs)
    total = 0.0
    active, fixed = set(network.active), set(network.fixed)
    for made, (a, b, left, right, kept) in enumerate(_walk(network, pairs), len(network.terms)):
        free = network.cached and a in fixed and b in fixed
        if not free:
            total += product_cost(network, left, right, kept, minimize, rates)
        if a in active:
            total += product_cost(network, kept, right, left, minimize, rates)
        if b in active:
            total += product_cost(network, kept, left, right, minimize, rates)
        if a in active or b in active:
            active.add(made)
        if a in fixed and b in fixed:
            fixed.add(made)
    return total


def _walk(
    network: Network, pairs: Iterable[Pair]
) -> Iterator[tuple[int, int, Terms, Terms, Terms]]:
    """Each pair with the labels of its operands and of its result."""
    terms: list[Terms] = list(network.terms)
    uses: dict[int, int] = dict.fromkeys(network.output, 1)
    for term in terms:
        for label in term:
            uses[label] = uses.get(label, 0) + 1
    for a, b in pairs:
        left, right = terms[a], terms[b]
        for label in left:
            uses[label] -= 1
        for label in right:
            uses[label] -= 1
        kept = frozenset(label for label in left | right if uses[label])
        for label in kept:
            uses[label] += 1
        terms.append(kept)
        yield a, b, left, right, kept


def product_cost(
    network: Network, a: Terms, b: Terms, out: Terms, minimize: str, rates: Rates
) -> float:
    shared = a & b
    batch = _count(network, shared & out)
    inner = _count(network, shared - out)
    rows, columns = _count(network, a - b), _count(network, b - a)
    if minimize == "flops":
        return float((1 + bool(shared - out)) * batch * inner * rows * columns)
    size = 8 if network.dtype in ("float64", "complex64") else 4
    moved = float(size * batch * (rows * inner + inner * columns + rows * columns))
    work = rates.pass_us(moved)
    if inner > 1:
        work = max(work, rates.product_us(batch, rows, columns, inner, network.dtype))
    return rates.step_us + work


def _count(network: Network, labels: Iterable[int]) -> int:
    return math.prod([network.sizes[label] for label in labels])


def _peak(network: Network, pairs: Sequence[Pair]) -> float:
    """The most elements of intermediates at once; all that a gradient needs are kept."""
    held: dict[int, int] = {}
    active = set(network.active)
    live = peak = kept = 0
    for made, (a, b, _, _, out) in enumerate(_walk(network, pairs), len(network.terms)):
        size = _count(network, out)
        live += size
        peak = max(peak, live)
        needed = a in active or b in active
        if needed:
            active.add(made)
        for operand, other in ((a, b), (b, a)):
            if operand in held:
                freed = held.pop(operand)
                if other in active:  # the other's gradient reads it
                    kept += freed
                else:
                    live -= freed
        held[made] = size
    return float(peak + kept)


# ---------------------------------------------------------------------------- candidates


def candidate_orders(network: Network, trials: int, seed: int) -> Iterator[tuple[Pair, ...]]:
    """Orders worth comparing, a new one each; the first is cotengra's own best by flops."""
    seen: set[tuple[Pair, ...]] = set()
    for pairs in _all_candidates(network, trials, seed):
        if pairs not in seen:
            seen.add(pairs)
            yield pairs


def _all_candidates(network: Network, trials: int, seed: int) -> Iterator[tuple[Pair, ...]]:
    everything = range(len(network.terms))
    small = len(network.terms) <= EXACT_UP_TO
    methods: list[_Method] = (
        [_Exact(objective) for objective in _OBJECTIVES]
        if small
        else [_RandomGreedy(trials, seed), *(_Greedy(seed, c) for c in _COST_MODIFIERS)]
    )
    for method in methods:
        yield _Tree(network).contract(everything, method)
    fixed = [k for k in everything if k in network.fixed]
    if 1 < len(fixed) < len(network.terms):
        for method in methods:  # the weight first, then the data
            tree = _Tree(network)
            weight = tree.join(fixed, method)
            yield tree.contract(
                [weight, *(k for k in everything if k not in network.fixed)], method
            )
    if small and len(network.terms) > 3:
        for last in sorted(network.active):  # one step away from the gradient of `last`
            tree = _Tree(network)
            rest = tree.join([k for k in everything if k != last], methods[0])
            yield tree.contract([rest, last], methods[0])


class _Tree:
    """Pairs being collected; groups of operands are ordered by a method of cotengra's."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.terms: list[Terms] = list(network.terms)
        self.pairs: list[Pair] = []
        self.left: set[int] = set(range(len(network.terms)))

    def contract(self, members: Iterable[int], method: _Method) -> tuple[Pair, ...]:
        """The whole order, once the members are joined too."""
        self.join(list(members), method)
        return tuple(self.pairs)

    def join(self, members: Sequence[int], method: _Method) -> int:
        """Contract the members to one tensor; its number."""
        self.left.difference_update(members)
        needed = self.network.output.union(*(self.terms[k] for k in self.left))
        numbers = list(members)
        if len(members) == 2:
            path: Sequence[Sequence[int]] = [(0, 1)]
        elif len(members) > 2:
            path = method(self.network, [self.terms[k] for k in members], needed)
        else:
            path = []
        for step in path:
            last = numbers[step[0]]
            for position in step[1:]:
                last = self._pair(last, numbers[position])
            numbers.append(last)
        loose = self._loose(members)
        last = loose[0]
        for other in loose[1:]:
            last = self._pair(last, other)
        self.terms[last] &= needed
        self.left.add(last)
        return last

    def _pair(self, a: int, b: int) -> int:
        self.pairs.append((a, b))
        self.terms.append(self.terms[a] | self.terms[b])
        return len(self.terms) - 1

    def _loose(self, members: Sequence[int]) -> list[int]:
        """Members and results that no pair has taken."""
        taken = {k for pair in self.pairs for k in pair}
        own = {*members}
        for made, (a, b) in enumerate(self.pairs, len(self.network.terms)):
            if a in own and b in own:
                own.add(made)
        return sorted(own - taken)


class _Method:
    """An order finder of cotengra's: SSA steps over positions."""

    def __call__(
        self, network: Network, terms: Sequence[Terms], out: Terms
    ) -> Sequence[Sequence[int]]:
        inputs: list[list[str]] = [[letter(k) for k in sorted(term)] for term in terms]
        used = sorted({k for term in terms for k in term})
        sizes: dict[str, float] = {letter(k): float(network.sizes[k]) for k in used}
        return self.search(inputs, [letter(k) for k in used if k in out], sizes)

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        raise NotImplementedError


@dataclass(frozen=True)
class _Exact(_Method):
    objective: str

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        return cotengrust.optimize_optimal(
            inputs, output, sizes, minimize=self.objective, use_ssa=True
        )


@dataclass(frozen=True)
class _Greedy(_Method):
    seed: int
    modifier: float

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        return cotengrust.optimize_greedy(
            inputs, output, sizes, costmod=self.modifier, seed=self.seed, use_ssa=True
        )


@dataclass(frozen=True)
class _RandomGreedy(_Method):
    trials: int
    seed: int

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        path, _ = cotengrust.optimize_random_greedy_track_flops(
            inputs, output, sizes, ntrials=self.trials, seed=self.seed, use_ssa=True
        )
        return path
