"""What trees of a network cost, forward and backward.

In: a network, SSA pairs, an objective. Out: microseconds, flops, or elements held at most. The cost
of a tree is that of its products and of those that reverse-mode differentiation makes of them: for
C = A·B, one more for each of A and B that a gradient goes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Labels, Relation
from tncompiler.planning.candidates import Network, Terms
from tncompiler.planning.order import Pair
from tncompiler.planning.rates import Rates
from tncompiler.planning.windows import pair_cost, walk_windows

Members = int  # a set of tensors: bit k is operand k, the bit after them what reads the result

_MASKED_UP_TO = 64  # tensors; in larger networks sets of them take more time than they save


class OpenLabels:
    """The labels of what sets of tensors contract to: those that something outside carries too."""

    def __init__(self, network: Network) -> None:
        self.everything: Members = (2 << len(network.terms)) - 1
        self._carriers: dict[int, Members] = {}
        self._found: dict[Members, Terms] = {}
        for number, term in enumerate((*network.terms, network.output)):
            for label in term:
                self._carriers[label] = self._carriers.get(label, 0) | 1 << number

    def of(self, members: Members) -> Terms:
        """The labels of a set's contraction; remembered, as trees share most sets."""
        found = self._found.get(members)
        if found is None:
            rest, carriers = self.everything ^ members, self._carriers.items()
            found = frozenset([label for label, on in carriers if on & members and on & rest])
            self._found[members] = found
        return found


Walked = tuple[int, int, Terms, Terms, Terms, tuple[Relation, ...]]


class TreeCosts:
    """What trees of one network cost by one objective; what several of them share once."""

    def __init__(self, network: Network, minimize: str, rates: Rates) -> None:
        self.network, self.minimize, self.rates = network, minimize, rates
        masked = len(network.terms) <= _MASKED_UP_TO and not network.relations
        self._labels = OpenLabels(network) if masked else None
        self._products: dict[tuple[Terms, Terms, Terms], float] = {}
        self._copies: dict[tuple[int, int, Terms, Terms], float] = {}

    def __call__(self, pairs: Sequence[Pair]) -> float:
        """Microseconds, flops, or elements held at most, of a tree with its adjoint."""
        if self.minimize == "memory":
            return _peak(self.network, pairs)
        total = 0.0
        network = self.network
        active, fixed = set(network.active), set(network.fixed)
        for made, walked in enumerate(self._walk(pairs), len(network.terms)):
            a, b, left, right, kept, windows = walked
            cost = partial(self._with_windows, windows) if windows else self._product
            free = network.cached and a in fixed and b in fixed
            if not free:
                total += self._copied(a, b, left & right, kept)
                total += cost(left, right, kept)
            if a in active and not free:
                total += cost(kept, right, left)
            if b in active and not free:
                total += cost(kept, left, right)
            if a in active or b in active:
                active.add(made)
            if a in fixed and b in fixed:
                fixed.add(made)
        return total

    def _walk(self, pairs: Sequence[Pair]) -> Iterator[Walked]:
        """Each pair with the labels of its operands and of its result, and the windows it uses."""
        if self._labels is None:
            yield from walk_windows(self.network, pairs)
            return
        labels, terms = self._labels, list(self.network.terms)
        members = [1 << number for number in range(len(terms))]
        for a, b in pairs:
            made = members[a] | members[b]
            kept = labels.of(made)
            yield a, b, terms[a], terms[b], kept, ()
            members.append(made)
            terms.append(kept)

    def _product(self, a: Terms, b: Terms, out: Terms) -> float:
        key = (a, b, out)
        cost = self._products.get(key)
        if cost is None:
            cost = product_cost(self.network, a, b, out, self.minimize, self.rates)
            if self._labels is not None:
                self._products[key] = cost
        return cost

    def _with_windows(self, windows: tuple[Relation, ...], a: Terms, b: Terms, out: Terms) -> float:
        return pair_cost(self.network, a, b, out, windows, self.minimize, self.rates)

    def _copied(self, a: int, b: int, shared: Terms, kept: Terms) -> float:
        """Microseconds of copying operands that a product cannot read as they stand."""
        count = len(self.network.terms)
        if self.minimize != "time" or (a >= count and b >= count) or not shared - kept:
            return 0.0
        key = (min(a, count), min(b, count), shared, kept)  # of results only the labels count
        cost = self._copies.get(key)
        if cost is None:
            cost = _copies_us(self.network, (a, b), shared, kept, self.rates)
            if self._labels is not None:
                self._copies[key] = cost
        return cost


def tree_cost(network: Network, pairs: Sequence[Pair], minimize: str, rates: Rates) -> float:
    """What one tree costs, as `TreeCosts` says."""
    return TreeCosts(network, minimize, rates)(pairs)


def product_cost(
    network: Network, a: Terms, b: Terms, out: Terms, minimize: str, rates: Rates
) -> float:
    shared = a & b
    both, batch = network.count(shared), network.count(shared & out)
    inner, rows, columns = both // batch, network.count(a) // both, network.count(b) // both
    if minimize == "flops":
        return float((1 + (not shared <= out)) * batch * inner * rows * columns)
    size = _item_bytes(network)
    moved = float(size * batch * (rows * inner + inner * columns + rows * columns))
    work = rates.pass_us(moved)
    if inner > 1:
        rows, columns = sorted((rows, columns))  # layouts decide which way round it is computed
        work = max(work, rates.product_us(batch, rows, columns, inner, network.dtype))
    return rates.step_us + work


def _copies_us(network: Network, pair: Pair, shared: Terms, kept: Terms, rates: Rates) -> float:
    """Operands that a matrix product cannot read as they stand; of results layouts take care."""
    total = 0.0
    for operand in pair:
        if operand < len(network.wires):
            wire = network.wires[operand]
            if not _stands_in_blocks(wire, shared, kept):
                item, run = _item_bytes(network), network.sizes[wire[-1]]
                moved = 2.0 * item * network.count(network.terms[operand])
                total += rates.step_us + rates.gather_us(moved, run, item)
    return total


def _stands_in_blocks(wire: Labels, shared: Terms, kept: Terms) -> bool:
    """Whether batch, free and summed labels are contiguous, and a batch not innermost."""
    groups = [group for group, _ in groupby((k in shared, k in kept) for k in wire)]
    batch_last = len(groups) > 1 and groups[-1] == (True, True)
    return len(groups) == len(set(groups)) and not batch_last


def _item_bytes(network: Network) -> int:
    return ITEM_BYTES.get(network.dtype, 4)


def _peak(network: Network, pairs: Sequence[Pair]) -> float:
    """The most elements of intermediates at once; all that a gradient needs are kept."""
    held: dict[int, int] = {}
    active = set(network.active)
    live = peak = kept = 0
    walk = walk_windows(network, pairs)
    for made, (a, b, _, _, out, _) in enumerate(walk, len(network.terms)):
        size = network.count(out)
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
