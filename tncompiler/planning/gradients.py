"""Gradients of a network on trees of their own, where that is cheaper than reversing its tree.

In: a network, an order, other orders. Out: what to contract with what for all gradients, if
reversing the order is not the best. Every intermediate of the value and of the gradients is the
contraction of a set of tensors, operands and cotangent: the value is that of all operands, the
gradient of an operand that of everything else. A tree over operands and cotangent, without a root,
leads to each of them; to reverse an order is to take all gradients from the tree of the value. Here
each gradient may come from another tree, and a set that is made anyway costs nothing again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from tncompiler.planning.candidates import Network, Terms, candidate_orders
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair
from tncompiler.planning.rates import Rates
from tncompiler.planning.tree_cost import Members, OpenLabels, product_cost

Tensors = Members  # the highest bit is the cotangent
Parts = dict[Tensors, tuple[Tensors, Tensors]]  # the two sets that a set is made of
Tree = Mapping[Tensors, tuple[Tensors, Tensors]]

GRADIENTS_UP_TO = 12  # tensors; beyond, looking costs more than there is to gain
_OWN_ORDERS = 2  # of the candidates for one gradient alone
_FEW = 4  # trees, the best for all gradients at once, that each gradient may move to
_ROUNDS = 2


@dataclass(frozen=True)
class Sets:
    """The sets of tensors of a network, and what it costs to join two of them."""

    network: Network
    minimize: str
    rates: Rates
    _costs: dict[tuple[Tensors, Tensors], float] = field(default_factory=dict)

    @cached_property
    def _labels(self) -> OpenLabels:
        return OpenLabels(self.network)

    @property
    def count(self) -> int:
        return len(self.network.terms)

    @property
    def everything(self) -> Tensors:
        return (2 << self.count) - 1

    @property
    def value(self) -> Tensors:
        return (1 << self.count) - 1

    def gradient(self, operand: int) -> Tensors:
        return self.everything ^ 1 << operand

    def terms(self, tensors: Tensors) -> Terms:
        """The labels of a set's contraction: those that something outside carries as well."""
        return self._labels.of(tensors)

    def cost(self, a: Tensors, b: Tensors) -> float:
        """What it costs to contract two sets with each other."""
        key = (a, b) if a < b else (b, a)
        cost = self._costs.get(key)
        if cost is None:
            terms = self.terms(a), self.terms(b), self.terms(a | b)
            cost = product_cost(self.network, *terms, self.minimize, self.rates)
            self._costs[key] = cost
        return cost

    def tree(self, pairs: Iterable[Pair], leaves: Sequence[Tensors] = ()) -> Tree:
        """A tree from pairs over all its leaves but one, the root: sets towards it and away."""
        made = [*(leaves or (1 << k for k in range(self.count)))]
        parts: Parts = {}
        steps = []
        for a, b in pairs:
            whole = made[a] | made[b]
            steps.append((whole, made[a], made[b]))
            made.append(whole)
        for whole, left, right in reversed(steps):
            above = self.everything ^ whole
            parts[whole] = (left, right)
            parts[self.everything ^ left] = (above, right)
            parts[self.everything ^ right] = (above, left)
        return parts

    def extend(self, made: Parts, wanted: Tensors, tree: Tree) -> float:
        """Add to `made` what a set needs beyond it; what that costs."""
        pending, total = [wanted], 0.0
        while pending:
            tensors = pending.pop()
            if tensors in made or not tensors & (tensors - 1):  # there already, or a leaf
                continue
            made[tensors] = a, b = tree[tensors]
            total += self.cost(a, b)
            pending += (a, b)
        return total


@dataclass(frozen=True, slots=True)
class Gradients:
    """How the gradients of a network's operands are made.

    ``cost``: of value and gradients together. ``reverses``: all are those of the value's order
    reversed. ``pairs``: what to contract with what, for sets that the value's order makes too as
    that order does it; operands have their numbers, then comes the cotangent, then the results.
    ``results``: the number of each operand's gradient.
    """

    cost: float
    reverses: bool
    pairs: tuple[Pair, ...]
    results: Mapping[int, int]


def best_gradients(
    sets: Sets, pairs: Sequence[Pair], orders: Iterable[Sequence[Pair]], options: PlanOptions
) -> Gradients:
    """The gradients that go best with an order: all from its tree, from another, or each its own.

    Starts from the best tree for all gradients at once and then moves one gradient after the other,
    the dearest first, to a tree of its own or one of the best few, if the whole gets cheaper.
    """
    base = sets.tree(pairs)
    active = sorted(sets.network.active)
    own = {operand: _own_trees(sets, base, operand, options) for operand in active}
    trees = [base, *map(sets.tree, orders), *(tree for found in own.values() for tree in found)]
    starts = [dict.fromkeys(active, tree) for tree in trees]
    costs = [_total(sets, base, start) for start in starts]
    ranked = sorted(range(len(trees)), key=costs.__getitem__)
    choice, few = starts[ranked[0]], [base, *(trees[k] for k in ranked[:_FEW])]
    for _ in range(_ROUNDS):
        before = choice
        for operand in sorted(active, key=lambda k: -_own_cost(sets, base, before, k)):
            choice = _moved(sets, base, choice, operand, [*few, *own[operand]])
        if choice == before:
            break
    return _numbered(sets, base, choice)


def may_replan(network: Network, options: PlanOptions) -> bool:
    """Whether looking is worth it: where all operands are active, reversing is within 4 %.

    Networks with windows are reversed: their sets of tensors do not say when a window is used.
    """
    known = options.search == "auto" and options.minimize in ("time", "flops")
    some = 0 < len(network.active) < len(network.terms) and not network.relations
    return known and some and 2 < len(network.terms) <= GRADIENTS_UP_TO


def _own_trees(sets: Sets, base: Tree, operand: int, options: PlanOptions) -> list[Tree]:
    """Trees for one gradient: over all other tensors, and over what the value's tree has made."""
    trees: list[Tree] = []
    siblings, place = [], sets.gradient(operand)
    while place in base:
        place, sibling = base[place]
        siblings.append(sibling)
    singles = [1 << k for k in range(sets.count + 1) if k != operand]
    for leaves, below in ((singles, {}), ([*siblings, place], base)):
        wires = tuple(tuple(sorted(sets.terms(tensors))) for tensors in leaves)
        output = sets.network.terms[operand]
        network = Network(wires, output, sets.network.sizes, sets.network.dtype)
        orders = candidate_orders(network, options.trials, options.seed)
        trees += [{**below, **sets.tree(order, leaves)} for order in islice(orders, _OWN_ORDERS)]
    return trees


def _total(sets: Sets, base: Tree, choice: Mapping[int, Tree]) -> float:
    return _made(sets, base, choice)[1]


def _made(sets: Sets, base: Tree, choice: Mapping[int, Tree]) -> tuple[Parts, float]:
    """All sets that value and gradients need, and what they cost."""
    made: Parts = {}
    total = sets.extend(made, sets.value, base)
    for operand, tree in choice.items():
        total += sets.extend(made, sets.gradient(operand), tree)
    return made, total


def _without(choice: Mapping[int, Tree], operand: int) -> dict[int, Tree]:
    return {k: tree for k, tree in choice.items() if k != operand}


def _own_cost(sets: Sets, base: Tree, choice: Mapping[int, Tree], operand: int) -> float:
    """What only this gradient needs."""
    return _total(sets, base, choice) - _total(sets, base, _without(choice, operand))


def _moved(
    sets: Sets, base: Tree, choice: dict[int, Tree], operand: int, trees: Sequence[Tree]
) -> dict[int, Tree]:
    """The choice with one gradient from the tree that makes it cheapest; itself if none does.

    It goes to the end: a set that several trees make differently is made as the first one does it.
    """
    others = _without(choice, operand)
    made, shared = _made(sets, base, others)
    wanted = sets.gradient(operand)
    costs = [shared + sets.extend(dict(made), wanted, tree) for tree in trees]
    least = min(costs)
    if least >= _total(sets, base, choice) * (1 - 1e-9):
        return choice
    return {**others, operand: trees[costs.index(least)]}


def _numbered(sets: Sets, base: Tree, choice: Mapping[int, Tree]) -> Gradients:
    """The sets in an order in which each comes after its parts."""
    made, total = _made(sets, base, choice)
    numbers = {1 << k: k for k in range(sets.count + 1)}
    pairs: list[Pair] = []
    for wanted in (sets.gradient(operand) for operand in choice):
        pending = [wanted]
        while pending:
            tensors = pending.pop()
            if tensors in numbers:
                continue
            missing = [part for part in made[tensors] if part not in numbers]
            if missing:
                pending += [tensors, *missing]
                continue
            a, b = made[tensors]
            pairs.append((numbers[a], numbers[b]))
            numbers[tensors] = sets.count + len(pairs)
    results = {operand: numbers[sets.gradient(operand)] for operand in choice}
    reverses = all(tree is base for tree in choice.values())
    return Gradients(total, reverses, tuple(pairs), results)
