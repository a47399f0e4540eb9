"""The fastest way to make one contraction a matrix product, given how its arrays are laid out.

In: a contraction of two operands with its labels in the order of the axes, sizes, a dtype, rates.
Out: which operands are permuted first and into which order, the order in which the result comes
out, and the predicted time of it all. Axes are told apart by label, so that an answer is remembered
for every contraction of that pattern.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product as choices
from itertools import takewhile
from operator import itemgetter
from typing import NamedTuple

from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.matmul import form_of_product, led, readable
from tncompiler.ir.program import Contract, Labels
from tncompiler.ir.strides import TURNED, Loops, turn_of
from tncompiler.planning.copies import halfway, loops_of, walk
from tncompiler.planning.rates import Rates

_SMALL = 2  # times as large must the other operand be for one to be copied only to be turned over
LONG_COPY_US = 20.0  # of a copy, below which no other way is looked for
_TWICE = 0.8  # of the time of one copy, that two have to stay below
_WORTH = 1.5  # times the time of a way may copies alone take, for another one to be looked at
_FEW = 4  # terms; the fewest of a product that BLAS was measured with


# products of more terms, with a side of less, are split: how many operations more that is
_LONG_SUM, _NARROW, _SPLIT_STEPS = 512, 12, 4


class Way(NamedTuple):  # made by the hundred: half the time of a frozen dataclass
    """How a product is computed: ``time_us``, what the operands are permuted to, and the result.

    ``a`` and ``b`` are the orders in which the operands are read; ``out`` is the order that the
    product gives, which is permuted if another one is wanted.
    """

    time_us: float
    a: Labels
    b: Labels
    out: Labels


Copies = tuple[float, Labels | None]  # the microseconds of one or two, and the order in between
_TABLES = 4  # of rates, whose answers are remembered at a time
_ANSWERS = 50_000  # that are remembered of one table: some 30 MB


class Ways:
    """Answers for one table of rates, remembered: layouts ask for the same ones again and again."""

    @staticmethod
    def of(rates: Rates) -> Ways:
        """What the process remembers of a table: plans, too, ask for the same ones again."""
        known = _KNOWN.get(id(rates))  # which no other table has while it is held here
        if known is None or len(known._found) > _ANSWERS:
            if len(_KNOWN) >= _TABLES:
                _KNOWN.clear()
            known = _KNOWN[id(rates)] = Ways(rates)
        return known

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self._found: dict[tuple[Contract, tuple[int, ...], str], tuple[Way, ...]] = {}
        self._products: dict[tuple[int, int, int, int, str, str], float] = {}
        self._walks: dict[tuple[Loops, str], float] = {}
        self._copies: dict[tuple[Labels, Labels, tuple[int, ...], str], Copies] = {}

    def best(self, op: Contract, sizes: tuple[int, ...], dtype: str) -> Way:
        """The fastest way; among equals the first. ``sizes``: by label, which count from 0."""
        return self._ranked(op, sizes, dtype)[0]

    def results(self, op: Contract, sizes: tuple[int, ...], dtype: str) -> tuple[Labels, ...]:
        """Orders in which the result can come out, those of the fastest ways first."""
        return tuple(dict.fromkeys(way.out for way in self._ranked(op, sizes, dtype)))

    def _ranked(self, op: Contract, sizes: tuple[int, ...], dtype: str) -> tuple[Way, ...]:
        key = (op, sizes, dtype)
        found = self._found.get(key)
        if found is None:
            ways = _Case(op, sizes, dtype, self).ways()
            found = self._found[key] = tuple(sorted(ways, key=lambda way: way.time_us))
        return found

    def product_us(
        self, lead: int, rows: int, columns: int, k: int, dtype: str, form: str
    ) -> float:
        """Microseconds of a product, with its start."""
        key = (lead, rows, columns, k, dtype, form)
        time = self._products.get(key)
        if time is None:
            work = work_us(self.rates, *key)
            moved = ITEM_BYTES[dtype] * lead * (rows * k + k * columns + rows * columns)
            time = self.rates.step_us + max(work, self.rates.pass_us(moved))
            self._products[key] = time
        return time

    def permute_us(
        self, source: Labels, order: Labels, sizes: tuple[int, ...], dtype: str
    ) -> float:
        """Microseconds of copies into another order; none if only axes of size 1 move."""
        return self.copies(source, order, sizes, dtype)[0]

    def copies(self, source: Labels, order: Labels, sizes: tuple[int, ...], dtype: str) -> Copies:
        """The same, and the order in between where two copies take less than one."""
        key = (source, order, sizes, dtype)
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = self._fewest(*key)
        return found

    def _fewest(self, source: Labels, order: Labels, sizes: tuple[int, ...], dtype: str) -> Copies:
        """One copy or two."""
        once = self._copy_us(source, order, sizes, dtype)
        between = halfway(source, order) if once > LONG_COPY_US else None
        if between is not None:
            twice = self._copy_us(source, between, sizes, dtype)
            twice += self._copy_us(between, order, sizes, dtype)
            if twice < _TWICE * once:
                return twice, between
        return once, None

    def _copy_us(self, source: Labels, order: Labels, sizes: tuple[int, ...], dtype: str) -> float:
        """Microseconds of one permuting copy, with its start."""
        loops = loops_of(source, order, sizes)
        if loops is None:
            return 0.0
        time = self._walks.get((loops, dtype))
        if time is None:
            time = self.rates.step_us + copied_us(self.rates, loops, dtype)
            self._walks[loops, dtype] = time
        return time


_KNOWN: dict[int, Ways] = {}


def copied_us(rates: Rates, loops: Loops, dtype: str) -> float:
    """Microseconds of a permuting copy, without its start."""
    item = ITEM_BYTES[dtype]
    time = rates.permute_us(math.prod(loops.extents), walk(loops, item), item)
    turn = turn_of(loops) if dtype == TURNED else None
    return time if turn is None else min(time, rates.turn_us(turn))


def work_us(
    rates: Rates, lead: int, rows: int, columns: int, k: int, dtype: str, form: str
) -> float:
    """Microseconds of a product without its start; of one term as of a few where that is less.

    NumPy has a slow loop for one term, so that the code makes it two; see `numpy/runtime.py`.
    """
    time = rates.product_us(lead, rows, columns, k, dtype, form)
    if k > _LONG_SUM and min(rows, columns) < _NARROW:  # backends add it up by blocks
        time += _SPLIT_STEPS * rates.step_us
        if lead > 1:  # and copy the smaller operand, which lies in rows of the whole sum
            time += rates.pass_us(2.0 * ITEM_BYTES[dtype] * lead * k * min(rows, columns))
    return min(time, rates.product_us(lead, rows, columns, _FEW, dtype)) if k == 1 else time


class _Reading(NamedTuple):
    """How one operand is read: permuted to `order` or as it stands, at what cost.

    ``outer`` and ``free``: its labels that the other operand lacks, those with a product each and
    those in one product; ``repeats`` and ``extent``: how many positions they have.
    """

    order: Labels
    outer: Labels
    free: Labels
    repeats: int
    extent: int
    time_us: float


@dataclass(frozen=True, slots=True)
class _Case:
    """A contraction with sizes, a dtype and rates."""

    op: Contract
    sizes: tuple[int, ...]
    dtype: str
    times: Ways

    def ways(self) -> Iterator[Way]:
        """Every way that is worth a look."""
        a, b = self.op.inputs
        on_b, out = set(b), set(self.op.output)
        shared = [label for label in a if label in on_b]
        batch = {label for label in shared if label in out}
        summed = set(shared) - batch
        counts = self._count(batch), self._count(summed)
        leads = _orders(batch, a, b, self.op.output)
        own_a, own_b = self._free(a, on_b), self._free(b, set(a))
        size_a, size_b = self._count(a), self._count(b)
        least = math.inf
        for lead, k in choices(leads, _orders(summed, a, b)):
            for first, second in choices(
                self._readings(a, own_a, lead, k, _SMALL * size_a <= size_b),
                self._readings(b, own_b, lead, k, _SMALL * size_b <= size_a),
            ):
                if first.outer and second.outer:
                    continue
                if first.time_us + second.time_us <= _WORTH * least:
                    for way in self._products(lead, k, counts, first, second):
                        least = min(least, way.time_us)
                        yield way

    def _free(self, own: Labels, other: Collection[int]) -> tuple[Labels, ...]:
        """The labels that an operand has alone, in the orders worth a look; its own comes first."""
        return _orders({label for label in own if label not in other}, own, self.op.output)

    def _readings(
        self, own: Labels, free: tuple[Labels, ...], lead: Labels, k: Labels, small: bool
    ) -> list[_Reading]:
        """How an operand can be read; ``small``: turning it over may cost less than it gains."""
        extent = self._count(free[0])
        found = []
        for m in free:
            as_it_is = readable(own, lead, m, k) is not None
            if as_it_is:
                found.append(_Reading(own, (), m, 1, extent, 0.0))
            if small or not as_it_is:
                found += self._copied(own, lead, m, k, extent, as_it_is)
        if not lead and found[0].time_us:
            for outer, m, _ in led(own, free[0], k):
                found.append(_Reading(own, outer, m, self._count(outer), self._count(m), 0.0))
            if found[0].time_us > LONG_COPY_US:
                found += self._stacked(own, free[0], k)
        return found

    def _copied(
        self, own: Labels, lead: Labels, m: Labels, k: Labels, extent: int, as_it_is: bool
    ) -> Iterator[_Reading]:
        """An operand copied into a stack of matrices, either way round; where that takes long also
        into matrices whose rows lie apart, so that outer axes may stay where they are."""
        for order, near in (((*lead, *m, *k), (*m, *lead, *k)), ((*lead, *k, *m), (*k, *lead, *m))):
            time = self._permute_us(own, order)
            if lead and m and k and time > LONG_COPY_US:
                least = self._permute_us(own, near)
                time, order = min((time, order), (least, near), key=itemgetter(0))
            if time or not as_it_is:
                yield _Reading(order, (), m, 1, extent, time)

    def _stacked(self, own: Labels, free: Labels, k: Labels) -> Iterator[_Reading]:
        """Copies of an operand into a stack of matrices along the axes that the result begins with,
        where its other axes come after those of the other operand: it comes out as it is wanted."""
        outer = tuple(takewhile(free.__contains__, self.op.output))
        m = tuple([label for label in free if label not in outer])
        if outer and m:
            for order in ((*outer, *m, *k), (*outer, *k, *m)):
                time = self._permute_us(own, order)
                yield _Reading(order, outer, m, self._count(outer), self._count(m), time)

    def _products(
        self,
        lead: Labels,
        summed: Labels,
        counts: tuple[int, int],
        first: _Reading,
        second: _Reading,
    ) -> Iterator[Way]:
        """Both ways round; ``counts``: positions of the batch, and of what is summed."""
        outer = (*first.outer, *second.outer, *lead)
        batch, k = counts
        batch *= first.repeats * second.repeats
        reading = first.time_us + second.time_us
        for rows, columns in ((first, second), (second, first)):
            natural = (*outer, *rows.free, *columns.free)
            form = form_of_product(rows.order, columns.order, summed)
            time = reading + self.times.product_us(
                batch, rows.extent, columns.extent, k, self.dtype, form
            )
            time += self._permute_us(natural, self.op.output)
            yield Way(time, first.order, second.order, natural)

    def _count(self, labels: Collection[int]) -> int:
        return math.prod([self.sizes[label] for label in labels])

    def _permute_us(self, source: Labels, order: Labels) -> float:
        if source == order:
            return 0.0
        return self.times.permute_us(source, order, self.sizes, self.dtype)


def _orders(members: Collection[int], *sources: Labels) -> tuple[Labels, ...]:
    """The members in the order of each source."""
    if len(members) < 2:
        return (tuple(members),)
    orders = [tuple([label for label in labels if label in members]) for labels in sources]
    return tuple(dict.fromkeys(orders))
