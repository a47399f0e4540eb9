"""Better trees for networks too large for exact search: parts of a tree are searched exactly.

In: labels of the operands, sizes, SSA pairs. Out: SSA pairs that cost less, or the same ones. What
counts are multiplications, and elements written if they are given a weight. The idea is cotengra's
subtree reconfiguration, on its Rust half alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random

from tncompiler.planning.order import Pair, split_path

Terms = frozenset[int]
# SSA steps over positions for terms and the labels that must survive
Search = Callable[[Sequence[Terms], Terms], Sequence[Sequence[int]]]
Choice = Callable[[list[int]], int]  # of the node that is opened next

_PASSES = 6  # through the tree, at most, for each way to choose parts
_SEED = 0


def reconfigured(
    terms: Sequence[Terms],
    output: Terms,
    sizes: Mapping[int, int],
    pairs: Sequence[Pair],
    search: Search,
    leaves: int = 8,
    written: float = 0.0,
) -> tuple[Pair, ...]:
    """The tree once no part of so many leaves, chosen in any of WAYS, can be contracted for less.

    ``written``: how many multiplications writing one element counts as; `search` should agree.
    """
    tree = _Tree(terms, output, sizes, pairs, leaves, written)
    for opened in _ways(tree):
        for _ in range(_PASSES):
            gained = [tree.improve(node, opened, search) for node in tree.nodes()]
            if True not in gained:
                break
    return tree.pairs()


def _ways(tree: _Tree) -> tuple[Choice, ...]:
    """How a part grows from a node, in turn: what one way leaves the next improves.

    The largest first finds most; the others see parts that it never looks at: all around a node,
    along one branch, anywhere.
    """
    draw = Random(_SEED)
    return (
        lambda nodes: max(nodes, key=tree.size),
        lambda nodes: nodes[0],
        lambda nodes: nodes[-1],
        draw.choice,
    )


class _Tree:
    def __init__(
        self,
        terms: Sequence[Terms],
        output: Terms,
        sizes: Mapping[int, int],
        pairs: Sequence[Pair],
        leaves: int,
        written: float,
    ) -> None:
        self.count, self.sizes, self.leaves, self.written = len(terms), sizes, leaves, written
        self.searched: set[frozenset[int]] = set()
        self.labels: dict[int, Terms] = dict(enumerate(terms))
        self.children: dict[int, Pair] = dict(enumerate(pairs, self.count))
        self.root = self.following = self.count + len(pairs) - 1
        self._label(output)

    def _label(self, output: Terms) -> None:
        """The labels of every result: those that an operand outside, or the output, carries."""
        uses: dict[int, int] = dict.fromkeys(output, 1)
        for term in self.labels.values():
            for label in term:
                uses[label] = uses.get(label, 0) + 1
        for node, (a, b) in self.children.items():
            for label in (*self.labels[a], *self.labels[b]):
                uses[label] -= 1
            kept = frozenset(k for k in self.labels[a] | self.labels[b] if uses[k])
            for label in kept:
                uses[label] += 1
            self.labels[node] = kept

    def nodes(self) -> list[int]:
        """Results, operands before what reads them."""
        found, stack = [], [self.root]
        while stack:
            node = stack.pop()
            if node in self.children:
                found.append(node)
                stack += self.children[node]
        return found[::-1]

    def improve(self, node: int, opened: Choice, search: Search) -> bool:
        """Search a part below a node exactly; whether that saved anything."""
        if node not in self.children:  # it went with a part that was replaced
            return False
        leaves, inner = self._part(node, opened)
        if len(leaves) < 3 or frozenset(leaves) in self.searched:
            return False
        self.searched.add(frozenset(leaves))
        before = sum(self._cost(k, self.children[k]) for k in inner)
        made = self._searched(node, leaves, search)
        after = sum(self._cost(k, pair) for k, pair in made.items())
        if after >= before * (1 - 1e-9):
            for k in made:
                if k != node:
                    del self.labels[k]
            return False
        for k in inner:
            del self.children[k]
        self.children.update(made)
        return True

    def _part(self, node: int, opened: Choice) -> tuple[list[int], list[int]]:
        """Some nodes below a node, and those that join them."""
        leaves, inner = [node], []
        while len(leaves) < self.leaves:
            closed = [k for k in leaves if k in self.children]
            if not closed:
                break
            chosen = opened(closed)
            leaves.remove(chosen)
            leaves += self.children[chosen]
            inner.append(chosen)
        return leaves, inner

    def _searched(self, node: int, leaves: Sequence[int], search: Search) -> dict[int, Pair]:
        """New nodes that join the leaves to the node; their labels are noted."""
        names = list(leaves)
        made: dict[int, Pair] = {}
        found = search([self.labels[k] for k in leaves], self.labels[node])
        path = split_path(found, len(leaves))
        for position, (a, b) in enumerate(path):
            last = position == len(path) - 1
            if not last:
                self.following += 1
            new = node if last else self.following
            made[new] = (names[a], names[b])
            rest = [x for step in path[position + 1 :] for x in step if x < len(names)]
            needed = self.labels[node].union(*(self.labels[names[x]] for x in rest))
            if not last:
                self.labels[new] = (self.labels[names[a]] | self.labels[names[b]]) & needed
            names.append(new)
        return made

    def _cost(self, node: int, pair: Pair) -> float:
        cost = self._count(self.labels[pair[0]] | self.labels[pair[1]])
        return cost + self.written * self.size(node) if self.written else cost

    def size(self, node: int) -> float:
        """The elements of a tensor or a result."""
        return self._count(self.labels[node])

    def _count(self, labels: Collection[int]) -> float:
        return math.prod([float(self.sizes[label]) for label in labels])

    def pairs(self) -> tuple[Pair, ...]:
        """The tree in SSA numbers."""
        number = {k: k for k in range(self.count)}
        pairs: list[Pair] = []
        for node in self.nodes():
            a, b = self.children[node]
            pairs.append((number[a], number[b]))
            number[node] = self.count + len(pairs) - 1
        return tuple(pairs)
