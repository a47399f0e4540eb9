"""Candidate orders of one network from cotengra.

In: labels, sizes, which operands need gradients, which hold no data. Out: SSA pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import cotengrust

from tncompiler.ir.program import Labels, Relation
from tncompiler.planning.order import Pair, letter, split_path
from tncompiler.planning.reconfigure import reconfigured
from tncompiler.planning.windows import walk_windows

Terms = frozenset[int]

POOL_UP_TO = 200  # tensors; beyond, one search, without a choice by time
SMALL = 9  # tensors; up to here exact search by every objective takes a few milliseconds
# n² √k of n tensors with k indices each up to which exact search takes some 10 ms; an index on more
# than CROWD tensors joins everything with everything, and search soon takes seconds
_HARDEST = 450.0
_CROWD, _CROWDED_UP_TO = 4, 8
_PART, _CROWDED_PART = 8, 6  # leaves of the parts that a larger tree is improved by
_OBJECTIVES = ("flops", "write", "size", "combo-4", "combo-32", "combo-256")
_MANY_TOUCH = 20  # pairs of tensors that share an index: from here on a search takes a millisecond
_FEW_OBJECTIVES = ("flops", "combo-32")
# a sieved search takes contractions up to a cost, doubled until a tree is found; parts are searched
# with all at once, as is what touches everything, which that way is done sooner
_NO_CAP = 1e300
_COST_MODIFIERS = (0.5, 1.0, 4.0)
# multiplications of an order from which on more starts are made, and how many: a third of a second
# each for 150 tensors, once, where every call takes milliseconds, or tens of them
_LONG_RUNS = ((1e9, 7), (1e7, 3))
# the best of these are improved once more with writing an element counted as so many
# multiplications: what is never written beats what is never computed where products are narrow
_LESS_WRITTEN, _WRITTEN = 3, 32


@dataclass(frozen=True)
class Network:
    """One contraction as a planner sees it.

    ``wires``: the labels of each operand that has any, in its axis order, those that it alone
    carries left out; ``active``: operands that a gradient goes through; ``fixed``: operands that
    hold no data, made of parameters and constants alone; ``cached``: whether products of these are
    made once and kept. ``relations``: windows that are still to be used.
    """

    wires: tuple[Labels, ...]
    output: Terms
    sizes: Mapping[int, int]
    dtype: str
    active: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    cached: bool = False
    relations: tuple[Relation, ...] = ()

    @cached_property
    def terms(self) -> tuple[Terms, ...]:
        """The labels of each operand as sets."""
        return tuple(map(frozenset, self.wires))

    @cached_property
    def _counts(self) -> dict[Terms, int]:
        return {}

    def count(self, labels: Terms) -> int:
        """Positions of all these labels together; remembered, as trees share most products."""
        found = self._counts.get(labels)
        if found is None:
            found = self._counts[labels] = math.prod([self.sizes[label] for label in labels])
        return found

    @staticmethod
    def of(
        wires: Sequence[Labels],
        output: Labels,
        sizes: Mapping[int, int],
        dtype: str = "float32",
        active: Collection[int] = (),
        fixed: Collection[int] = (),
        cached: bool = False,
        relations: tuple[Relation, ...] = (),
    ) -> Network:
        """The network of a contraction's operands, scalars left out."""
        uses: dict[int, int] = dict.fromkeys(output, 1)
        for labels in (*wires, *(relation.labels for relation in relations)):
            for label in set(labels):
                uses[label] = uses.get(label, 0) + 1
        kept = [k for k, labels in enumerate(wires) if labels]
        left = (dict.fromkeys(k for k in wires[at] if uses[k] > 1) for at in kept)
        return Network(
            tuple(map(tuple, left)),
            frozenset(output),
            {label: max(size, 1) for label, size in sizes.items()},
            dtype,
            frozenset(new for new, old in enumerate(kept) if old in active),
            frozenset(new for new, old in enumerate(kept) if old in fixed),
            cached,
            relations,
        )


# ---------------------------------------------------------------------------- candidates


def candidate_orders(network: Network, trials: int, seed: int) -> Iterator[tuple[Pair, ...]]:
    """Orders worth comparing, a new one each; the first is cotengra's own best by flops.

    Within a pair the lower number comes first, as a linear path has it.
    """
    seen: set[tuple[Pair, ...]] = set()
    for found in _all_candidates(network, trials, seed):
        pairs = tuple((min(pair), max(pair)) for pair in found)
        if pairs not in seen:
            seen.add(pairs)
            yield pairs


def is_exact(terms: Sequence[Terms]) -> bool:
    """Whether exact search takes milliseconds."""
    count = len(terms)
    if _is_crowded(terms):
        return count <= _CROWDED_UP_TO
    hardness: float = count**1.5 * math.sqrt(sum(map(len, terms)))
    return hardness < _HARDEST


def _is_crowded(terms: Sequence[Terms]) -> bool:
    uses = Counter(label for term in terms for label in term)
    return max(uses.values(), default=0) > _CROWD


def _methods(network: Network, trials: int, seed: int) -> list[_Method]:
    """How orders are found: the first gives the fewest flops."""
    if is_exact(network.terms):
        return [*_exact_searches(network.terms)]
    greedy = [_Greedy(seed, modifier) for modifier in _COST_MODIFIERS]
    return [_Reconfigured(_RandomGreedy(trials, seed)), _RandomGreedy(trials, seed), *greedy]


def _exact_searches(terms: Sequence[Terms]) -> list[_Exact]:
    """Exact search by so many objectives that all of it takes a few milliseconds."""
    if len(terms) > SMALL:
        return [_Exact(objective) for objective in _FEW_OBJECTIVES]
    apart = sum(a.isdisjoint(b) for a, b in combinations(terms, 2))
    touching = math.comb(len(terms), 2) - apart
    objectives = _OBJECTIVES if touching < _MANY_TOUCH else _FEW_OBJECTIVES
    return [_Exact(objective, sieved=apart > 0) for objective in objectives]


def _all_candidates(network: Network, trials: int, seed: int) -> Iterator[tuple[Pair, ...]]:
    everything = range(len(network.terms))
    methods = _methods(network, trials, seed)
    whole = []
    for method in methods:
        whole.append(_Tree(network).contract(everything, method))
        yield whole[-1]
    fixed = [k for k in everything if k in network.fixed]
    if 1 < len(fixed) < len(network.terms):
        for method in filter(_is_among_few, methods):  # the weight first, then the data
            tree = _Tree(network)
            weight = tree.join(fixed, method)
            yield tree.contract(
                [weight, *(k for k in everything if k not in network.fixed)], method
            )
    if 3 < len(network.terms) <= SMALL:
        for last in sorted(network.active):  # one step away from the gradient of `last`
            tree = _Tree(network)
            rest = tree.join([k for k in everything if k != last], methods[0])
            yield tree.contract([rest, last], methods[0])
    if not is_exact(network.terms):
        least = min(tree_multiplications(network, pairs) for pairs in whole)
        count = next((count for long, count in _LONG_RUNS if least >= long), 0)
        found = whole[:1]
        for further in range(seed + 1, seed + 1 + count):
            # what reconfiguring leads to depends on its start: on circuits by a factor of ten
            start = _RandomGreedy(trials, further)
            found.append(_Tree(network).contract(everything, _Reconfigured(start)))
            yield found[-1]
        found.sort(key=partial(tree_multiplications, network))
        for pairs in found[: _LESS_WRITTEN if count else 0]:
            method = _Reconfigured(_Known(pairs), _WRITTEN)
            yield _Tree(network).contract(everything, method)


def tree_multiplications(network: Network, pairs: Sequence[Pair]) -> float:
    """The multiplications of a forward pass in this order."""
    walk = walk_windows(network, pairs)
    return float(sum(network.count(left | right) for _, _, left, right, _, _ in walk))


def _is_among_few(method: _Method) -> bool:
    """Whether a method is one of those that find nearly all there is to find."""
    return not isinstance(method, _Exact) or method.objective in _FEW_OBJECTIVES


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


class _Method(ABC):
    """Finds an order: SSA steps over positions."""

    @abstractmethod
    def __call__(
        self, network: Network, terms: Sequence[Terms], out: Terms
    ) -> Sequence[Sequence[int]]:
        """The order of `terms` that leaves the labels in `out`."""


class _Finder(_Method):
    """An order finder of cotengra's, over letters."""

    def __call__(
        self, network: Network, terms: Sequence[Terms], out: Terms
    ) -> Sequence[Sequence[int]]:
        inputs: list[list[str]] = [[letter(k) for k in sorted(term)] for term in terms]
        used = sorted({k for term in terms for k in term})
        sizes: dict[str, float] = {letter(k): float(network.sizes[k]) for k in used}
        return self.search(inputs, [letter(k) for k in used if k in out], sizes)

    @abstractmethod
    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        """SSA steps over the positions of `inputs`."""


@dataclass(frozen=True)
class _Exact(_Finder):
    objective: str
    sieved: bool = False

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        return cotengrust.optimize_optimal(
            inputs,
            output,
            sizes,
            minimize=self.objective,
            cost_cap=None if self.sieved or len(inputs) > SMALL else _NO_CAP,
            use_ssa=True,
        )


@dataclass(frozen=True)
class _Reconfigured(_Method):
    """What another method finds, improved part by part.

    ``written``: how many multiplications writing one element counts as, 0 or _WRITTEN.
    """

    first: _Method
    written: int = 0

    def __call__(
        self, network: Network, terms: Sequence[Terms], out: Terms
    ) -> Sequence[Sequence[int]]:
        pairs = split_path(self.first(network, terms, out), len(terms))
        objective = f"combo-{self.written}" if self.written else "flops"
        exact = partial(_Exact(objective), network)
        leaves = _CROWDED_PART if _is_crowded(terms) else _PART
        return reconfigured(terms, out, network.sizes, pairs, exact, leaves, self.written)


@dataclass(frozen=True)
class _Known(_Method):
    """An order of all tensors that was found before."""

    pairs: tuple[Pair, ...]

    def __call__(
        self, network: Network, terms: Sequence[Terms], out: Terms
    ) -> Sequence[Sequence[int]]:
        return self.pairs


@dataclass(frozen=True)
class _Greedy(_Finder):
    seed: int
    modifier: float

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        return cotengrust.optimize_greedy(
            inputs, output, sizes, costmod=self.modifier, seed=self.seed, use_ssa=True
        )


@dataclass(frozen=True)
class _RandomGreedy(_Finder):
    trials: int
    seed: int

    def search(
        self, inputs: list[list[str]], output: list[str], sizes: dict[str, float]
    ) -> Sequence[Sequence[int]]:
        path, _ = cotengrust.optimize_random_greedy_track_flops(
            inputs, output, sizes, ntrials=self.trials, seed=self.seed, use_ssa=True
        )
        return path
