"""Orders of an edited network from those of the network before the edit.

In: networks with the orders that a plan gives them, an edited network. Out: its order, and how many
of its pairs were searched anew. Tensors are matched by name. What changed is taken out of the old
tree or put next to what it shares most with; then the part of the tree around each change, a few
levels up, is contracted in the cheapest order that a search finds, its subtrees left as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tncompiler.ir.errors import PlanError
from tncompiler.ir.program import Contract, Convolve, Program
from tncompiler.ir.sizes import Binding
from tncompiler.planning.candidates import POOL_UP_TO, Network
from tncompiler.planning.hyper import Order, Trial, run_trial
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import intermediate_labels
from tncompiler.planning.plan import NetworkOrder
from tncompiler.planning.search import find_orders
from tncompiler.planning.tree_cost import tree_cost

Name = tuple[str, int]  # a tensor's name, and which of its occurrences

# how many levels above a change are planned anew, and what going further must save
_LEVELS = (0, 4, 8, 1_000_000)
_WORTH = 0.05
_SEARCHED_UP_TO = 40  # tensors: a search of so many takes some 20 ms


def tensor_names(network: NetworkOrder) -> tuple[Name, ...]:
    """The tensors, told apart where one name occurs several times."""
    seen: Counter[str] = Counter()
    found = []
    for tensor in network.tensors:
        found.append((tensor, seen[tensor]))
        seen[tensor] += 1
    return tuple(found)


def tensor_wiring(network: NetworkOrder) -> dict[Name, frozenset[object]]:
    """What each tensor is joined to, and how often; equal where an edit did not touch it.

    The order of its axes does not count, as no tree depends on it. Of an index on more than two
    tensors only the size does: one tensor more on a batch index leaves the others as they were.
    """
    ends: dict[int, list[Name]] = {}
    wired = dict(zip(tensor_names(network), network.wires, strict=True))
    for name, labels in wired.items():
        for label in labels:
            ends.setdefault(label, []).append(name)
    kept = set(network.output)
    what = {
        label: (network.sizes[label], label in kept, tuple(sorted(on)) if len(on) < 3 else None)
        for label, on in ends.items()
    }
    return {
        name: frozenset(Counter(what[label] for label in labels).items())
        for name, labels in wired.items()
    }


@dataclass(frozen=True, slots=True)
class Reused:
    """Orders by the name of each network's value, and how many of their pairs were searched."""

    orders: Mapping[str, Order]
    replanned: int


def reuse_orders(
    known: Sequence[NetworkOrder], program: Program, nominal: Binding, options: PlanOptions
) -> Reused:
    """Orders for all networks of an edited program.

    Raises: PlanError if no tensor of it is known; a single network of new tensors is searched.
    """
    orders, replanned, matched = {}, 0, False
    for step in program.steps:
        if isinstance(step.op, Convolve):  # searched anew when it is scheduled
            matched, replanned = True, replanned + len(step.operands) - 1
        if not isinstance(step.op, Contract) or not step.operands:
            continue
        edited = NetworkOrder.of(program, step.out.name, nominal)
        old = closest(edited, known)
        matched = matched or old is not None
        empty = NetworkOrder(edited.name, (), ())
        orders[edited.name], count = reuse_order(old or empty, edited, options)
        replanned += count
    if not matched:
        raise PlanError(
            "the network has no tensor in common with the plan's",
            fix="make a plan of its own with tnc.plan(expr, sizes=…)",
        )
    return Reused(orders, replanned)


def closest(edited: NetworkOrder, known: Iterable[NetworkOrder]) -> NetworkOrder | None:
    """The network with the most tensors of the same names; None if none has any."""
    names = set(tensor_names(edited))
    counted = [(len(names & set(tensor_names(old))), old) for old in known]
    most, best = max(counted, key=lambda pair: pair[0], default=(0, None))
    return best if most else None


def reuse_order(old: NetworkOrder, edited: NetworkOrder, options: PlanOptions) -> tuple[Order, int]:
    """The order of the edited network, and how many of its pairs were searched anew."""
    if len(edited.tensors) < 2:
        return (), 0
    before, after = tensor_wiring(old), tensor_wiring(edited)
    place = {name: position for position, name in enumerate(tensor_names(edited))}
    tree = _Tree.of(old, place)
    changed = [place[name] for name, wiring in after.items() if before.get(name) != wiring]
    network = Network(
        tuple(tuple(dict.fromkeys(wire)) for wire in edited.wires),
        frozenset(edited.output),
        {label: max(size, 1) for label, size in enumerate(edited.sizes)},
        "float32",
    )
    _insert(tree, network)
    plain = tree.order({})
    weigh = _Weights(options)
    whole = weigh(network, plain)
    best, searched, saved = plain, 0, 0.0
    for levels in _LEVELS:
        parts, gain = _replanned(tree, network, plain, _ancestors(tree, changed, levels), weigh)
        if gain > saved + _WORTH * (whole - saved):
            best, saved = tree.order(parts), gain
            searched = sum(len(part.order) for part in parts.values())
    if changed and len(network.terms) <= POOL_UP_TO:
        fresh = _anew(network, best, weigh)
        if fresh is not None:
            return fresh, len(fresh)
    return best, searched


def _anew(network: Network, kept: Order, weigh: _Weights) -> Order | None:
    """An order of the whole network, searched anew, if what was kept of the old tree is far worse.

    Where a search takes few milliseconds it tells; else greedy runs tell whether it is worth it.
    """
    enough = (1 - _WORTH) * weigh(network, kept)
    if len(network.terms) > _SEARCHED_UP_TO:
        options = weigh.options
        settings = {"ntrials": options.trials, "seed": options.seed}
        (greedy,) = run_trial(network, options.minimize, Trial("random greedy", settings))
        if weigh(network, greedy) >= enough:
            return None
    order = find_orders(network, weigh.options)[0]
    return order if weigh(network, order) < enough else None


@dataclass(frozen=True, slots=True)
class _Weights:
    """What orders cost by the options' objective; infinite beyond floating point."""

    options: PlanOptions

    def __call__(self, network: Network, order: Order) -> float:
        rates = as_machine(self.options.machine).planning
        try:
            return tree_cost(network, order, self.options.minimize, rates)
        except OverflowError:
            return math.inf


@dataclass
class _Tree:
    """A binary tree: leaves are numbers of tensors, inner nodes are numbered from `count` on."""

    count: int
    children: dict[int, tuple[int, int]] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    root: int | None = None

    @staticmethod
    def of(old: NetworkOrder, place: Mapping[Name, int]) -> _Tree:
        """The old tree with the tensors that are left, by their new places."""
        tree = _Tree(len(place))
        nodes: list[int | None] = [place.get(name) for name in tensor_names(old)]
        for a, b in old.pairs:
            left, right = nodes[a], nodes[b]
            if left is None or right is None:
                nodes.append(right if left is None else left)
            else:
                nodes.append(tree.join(left, right))
        tree.root = nodes[-1] if nodes else None
        return tree

    def join(self, left: int, right: int) -> int:
        """A new node over two."""
        made = self.count + len(self.children)
        self.children[made] = (left, right)
        self.parent[left] = self.parent[right] = made
        return made

    def insert(self, leaf: int, beside: int) -> None:
        """Put a leaf next to a node."""
        above = self.parent.get(beside)
        made = self.join(beside, leaf)
        if above is None:
            self.root = made
            return
        self.parent[made] = above
        a, b = self.children[above]
        self.children[above] = (made, b) if a == beside else (a, made)

    def order_within(self, top: int, items: Sequence[int]) -> Order:
        """How the tree joins these subtrees of `top`, as pairs of their positions."""
        number = {item: position for position, item in enumerate(items)}
        pairs = []
        for node in self.ascending(top, {}, number):
            if node not in number:
                a, b = self.children[node]
                pairs.append((number[a], number[b]))
                number[node] = len(items) + len(pairs) - 1
        return tuple(pairs)

    def order(self, replaced: Mapping[int, _Part]) -> Order:
        """The tree as pairs, with some parts contracted in orders of their own."""
        number: dict[int, int] = {}
        pairs: list[tuple[int, int]] = []
        for node in self.ascending(self.root, replaced):
            if node not in self.children:
                number[node] = node
                continue
            part = replaced.get(node)
            items = part.items if part else self.children[node]
            made = [number[item] for item in items]
            for a, b in part.order if part else ((0, 1),):
                pairs.append((made[a], made[b]))
                made.append(self.count + len(pairs) - 1)
            number[node] = made[-1]
        return tuple(pairs)

    def ascending(
        self, top: int | None, replaced: Mapping[int, _Part], below: Collection[int] = ()
    ) -> Iterator[int]:
        """Every node under `top` down to those `below`, operands first; no recursion."""
        stack = [] if top is None else [(top, False)]
        while stack:
            node, is_ready = stack.pop()
            if is_ready or node not in self.children or node in below:
                yield node
                continue
            stack.append((node, True))
            part = replaced.get(node)
            items = part.items if part else self.children[node]
            stack.extend((item, False) for item in reversed(items))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a tree: the subtrees it joins, and in which order."""

    items: tuple[int, ...]
    order: Order


def _insert(tree: _Tree, network: Network) -> None:
    """Put the tensors that the tree lacks next to the one that each shares most with."""
    on: dict[int, list[int]] = {}
    for leaf, term in enumerate(network.terms):
        for label in term:
            on.setdefault(label, []).append(leaf)
    there = {leaf for pair in tree.children.values() for leaf in pair if leaf < tree.count}
    if tree.root is not None and tree.root < tree.count:
        there.add(tree.root)
    waiting = [leaf for leaf in range(tree.count) if leaf not in there]
    for leaf in waiting:
        shared: Counter[int] = Counter()
        for label in network.terms[leaf]:
            if len(on[label]) < 3:
                for other in on[label]:
                    shared[other] += network.sizes[label].bit_length()
        near = [other for other, _ in shared.most_common() if other in there]
        beside = near[0] if near else tree.root
        if beside is None:
            tree.root = leaf
        else:
            tree.insert(leaf, beside)
        there.add(leaf)


def _replanned(
    tree: _Tree, network: Network, plain: Order, inside: Mapping[int, None], weigh: _Weights
) -> tuple[dict[int, _Part], float]:
    """The parts of the tree that are worth an order of their own, and what those save."""
    parts: dict[int, _Part] = {}
    gain = 0.0
    terms = _terms(tree, network, plain) if inside else {}
    for top in [node for node in inside if tree.parent.get(node) not in inside]:
        items = tuple(_frontier(tree, top, inside))
        if len(items) > POOL_UP_TO:  # that would be planning anew
            continue
        wires = tuple(tuple(sorted(terms[item])) for item in items)
        part = Network(wires, terms[top], network.sizes, "float32")
        order = find_orders(part, weigh.options)[0]
        saved = weigh(part, tree.order_within(top, items)) - weigh(part, order)
        if saved > 0:
            parts[top] = _Part(items, order)
            gain += saved
    return parts, gain


def _ancestors(tree: _Tree, changed: Sequence[int], levels: int) -> dict[int, None]:
    """The inner nodes above the changed leaves, in a fixed order."""
    found: dict[int, int] = {}  # node → levels that were left there
    for leaf in changed:
        node, left = tree.parent.get(leaf), levels
        while node is not None and left > found.get(node, 0):
            found[node] = left
            node, left = tree.parent.get(node), left - 1
    return dict.fromkeys(found)


def _frontier(tree: _Tree, top: int, inside: Mapping[int, None]) -> Iterator[int]:
    """The subtrees that a part of the tree joins."""
    stack = [top]
    while stack:
        node = stack.pop()
        if node in inside:
            stack.extend(reversed(tree.children[node]))
        else:
            yield node


def _terms(tree: _Tree, network: Network, plain: Order) -> dict[int, frozenset[int]]:
    """The labels of every node, by the tree's own numbers."""
    labels = intermediate_labels(
        [tuple(sorted(term)) for term in network.terms], network.output, plain
    )
    numbers = (node for node in tree.ascending(tree.root, {}) if node in tree.children)
    found = dict(enumerate(network.terms))
    for made, node in enumerate(numbers, tree.count):
        found[node] = frozenset(labels[made])
    return found
