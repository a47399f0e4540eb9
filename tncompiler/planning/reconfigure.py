"""Better trees for networks too large for exact search: parts of a tree are searched exactly.

In: labels of the operands, sizes, SSA pairs. Out: SSA pairs whose multiplications are fewer, or the
same ones. The idea is cotengra's subtree reconfiguration, on its Rust half alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from tncompiler.planning.order import Pair, split_path

Terms = frozenset[int]
# SSA steps over positions for terms and the labels that must survive
Search = Callable[[Sequence[Terms], Terms], Sequence[Sequence[int]]]

_PASSES = 6


def reconfigured(
    terms: Sequence[Terms],
    output: Terms,
    sizes: Mapping[int, int],
    pairs: Sequence[Pair],
    search: Search,
    leaves: int = 8,
) -> tuple[Pair, ...]:
    """The tree once no part of so many leaves can be contracted with fewer multiplications."""
    tree = _Tree(terms, output, sizes, pairs, leaves)
    for _ in range(_PASSES):
        gained = [tree.improve(node, search) for node in tree.nodes()]
        if True not in gained:
            break
    return tree.pairs()


class _Tree:
    def __init__(
        self,
        terms: Sequence[Terms],
        output: Terms,
        sizes: Mapping[int, int],
        pairs: Sequence[Pair],
        leaves: int,
    ) -> None:
        self.count, self.sizes, self.leaves = len(terms), sizes, leaves
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

    def improve(self, node: int, search: Search) -> bool:
        """Search the part below a node exactly; whether that saved anything."""
        if node not in self.children:  # it went with a part that was replaced
            return False
        leaves, inner = self._part(node)
        if len(leaves) < 3 or frozenset(leaves) in self.searched:
            return False
        self.searched.add(frozenset(leaves))
        before = sum(self._cost(*self.children[k]) for k in inner)
        made = self._searched(node, leaves, search)
        after = sum(self._cost(*pair) for pair in made.values())
        if after >= before * (1 - 1e-9):
            for k in made:
                if k != node:
                    del self.labels[k]
            return False
        for k in inner:
            del self.children[k]
        self.children.update(made)
        return True

    def _part(self, node: int) -> tuple[list[int], list[int]]:
        """Some nodes below a node, the largest opened first, and those that join them."""
        leaves, inner = [node], []
        while len(leaves) < self.leaves:
            opened = [k for k in leaves if k in self.children]
            if not opened:
                break
            largest = max(opened, key=lambda k: self._count(self.labels[k]))
            leaves.remove(largest)
            leaves += self.children[largest]
            inner.append(largest)
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

    def _cost(self, a: int, b: int) -> float:
        return self._count(self.labels[a] | self.labels[b])

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
