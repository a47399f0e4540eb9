"""An order in rounds: every tensor joins a neighbour at once, so that many products are alike.

In: labels of the operands, the output's, sizes. Out: SSA pairs. A chain of n tensors takes log n
rounds of equal products, each of which can be carried out as one (see stacking.py), where an order
along the chain takes n products one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from tncompiler.planning.order import Pair

Terms = frozenset[int]

LEAST = 8  # equal products that may be carried out as one; fewer are left apart
ROUNDS_UP_TO = 2000  # tensors; scheduling more takes seconds
CROWD = 4  # a label on more tensors joins everything with everything: it makes no neighbours


def order_in_rounds(
    terms: Sequence[Terms], output: Terms, sizes: Mapping[int, int]
) -> tuple[Pair, ...]:
    """Tensors that hang on one other first, then as many pairs a round as there are."""
    rounds = _Rounds(terms, output, sizes)
    for pair in list(rounds.hanging()):
        rounds.join(*pair)
    while len(rounds.terms) > 1:
        pairs = rounds.matching()
        if not pairs:
            first, second, *_ = rounds.terms
            pairs = [(first, second)]
        for pair in pairs:
            rounds.join(*pair)
    return tuple(rounds.pairs)


class _Rounds:
    """What is left of a network, by SSA number."""

    def __init__(self, terms: Sequence[Terms], output: Terms, sizes: Mapping[int, int]) -> None:
        self.terms = dict(enumerate(terms))
        self.sizes, self.output = sizes, output
        self.pairs: list[Pair] = []
        self.following = len(terms)
        self.holders: dict[int, dict[int, None]] = {}  # label → the tensors that carry it, in order
        for number, term in self.terms.items():
            for label in term:
                self.holders.setdefault(label, {})[number] = None

    def join(self, a: int, b: int) -> None:
        """Contract two tensors."""
        left, right = self.terms.pop(a), self.terms.pop(b)
        kept = set()
        for label in left | right:
            holders = self.holders[label]
            holders.pop(a, None)
            holders.pop(b, None)
            if holders or label in self.output:
                holders[self.following] = None
                kept.add(label)
        self.terms[self.following] = frozenset(kept)
        self.pairs.append((min(a, b), max(a, b)))
        self.following += 1

    def hanging(self) -> Iterator[Pair]:
        """Tensors all of whose neighbours are one that is larger, with that one; each once."""
        taken: set[int] = set()
        for number in self.terms:
            near = self._neighbours(number)
            other = near[0] if len(near) == 1 else number
            if (
                other != number
                and self._smaller(number, other)
                and taken.isdisjoint((number, other))
            ):
                taken.update((number, other))
                yield number, other

    def matching(self) -> list[Pair]:
        """Disjoint pairs of neighbours, those with the fewest multiplications first."""
        found = {
            (min(a, b), max(a, b)): self._count(self.terms[a] | self.terms[b])
            for a in self.terms
            for b in self._neighbours(a)
        }
        taken: set[int] = set()
        chosen = []
        for pair in sorted(found, key=lambda pair: (found[pair], pair)):
            if taken.isdisjoint(pair):
                taken.update(pair)
                chosen.append(pair)
        return chosen

    def _neighbours(self, number: int) -> list[int]:
        shared = (self.holders[label] for label in sorted(self.terms[number]))
        near = dict.fromkeys(k for holders in shared if len(holders) <= CROWD for k in holders)
        return [other for other in near if other != number]

    def _smaller(self, a: int, b: int) -> bool:
        return self._count(self.terms[a]) <= self._count(self.terms[b])

    def _count(self, labels: Terms) -> float:
        return math.prod([float(self.sizes[label]) for label in labels])
