"""Search the order of one network, within the time that a plan may take.

In: a network, options, a budget. Out: SSA pairs, the cheapest first; at least greedy ones.
What comes out depends on the options alone, not on where and how many at once trials ran, unless
the budget was used up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from tqdm import tqdm

from tncompiler.ir.program import Labels, Relation
from tncompiler.planning.budget import Budget
from tncompiler.planning.candidates import POOL_UP_TO, Network, is_exact
from tncompiler.planning.hyper import Order, Trial, greedy_order, numbered_trials, refining
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import asked_order, order_as_written
from tncompiler.planning.tree_cost import TreeCosts, tree_cost
from tncompiler.planning.windows import label_models
from tncompiler.planning.workers import Executor, Here, Processes, Runner

_RANDOM_UP_TO = 2000  # tensors; beyond, one greedy run
_REFINED = 4  # of the best orders, at most; fewer where there are few trials
_RANDOM_GREEDY = 64  # runs at once, at most, that begin a hyper-search
_EASE = 0.5  # of the time left: what a search may be expected to take to run right here
_CANDIDATES = 20  # greedy runs that choosing among candidates takes, beside the trials


def contraction_order(
    inputs: Sequence[Labels],
    output: Labels,
    sizes: Mapping[int, int],
    options: PlanOptions,
    relations: tuple[Relation, ...] = (),
) -> Order:
    """The best order of tensors by their labels, for a forward pass alone."""
    wires = tuple(tuple(dict.fromkeys(labels)) for labels in inputs)
    known = {label: max(size, 1) for label, size in sizes.items()}
    network = Network(wires, frozenset(output), known, "float32", relations=relations)
    return find_orders(network, options)[0]


def find_orders(
    network: Network,
    options: PlanOptions,
    budget: Budget | None = None,
    costs: TreeCosts | None = None,
) -> list[Order]:
    """The orders that the search finds, at least one, by the options' objective the best first.

    ``costs``: of the network's trees by that objective, if the caller has use for them too.
    """
    count = len(network.terms)
    if count < 3:
        return [order_as_written(count)]
    if network.relations:
        return _orders_of_windows(network, options, budget)
    if callable(options.search):
        return [asked_order(options.search, network.terms, network.output, network.sizes)]
    if options.search == "left-to-right":
        return [order_as_written(count)]
    costs = costs or TreeCosts(network, options.minimize, as_machine(options.machine).planning)
    return _Search(network, options, budget or Budget.of(options), costs).run()


def _orders_of_windows(
    network: Network, options: PlanOptions, budget: Budget | None
) -> list[Order]:
    """The orders of networks of labels that stand for this one, by what they cost here."""
    rates = as_machine(options.machine).planning
    models = label_models(network)
    found = dict.fromkeys(order for m in models for order in find_orders(m, options, budget))
    return sorted(found, key=lambda order: tree_cost(network, order, options.minimize, rates))


class _Search:
    """The orders of one network as they come in, and the best of them."""

    def __init__(
        self, network: Network, options: PlanOptions, budget: Budget, costs: TreeCosts
    ) -> None:
        self.network, self.options, self.budget = network, options, budget
        self._tree_costs = costs
        self.found: dict[Order, int] = {}  # and the number of the trial that found it first
        self.costs: dict[Order, float] = {}

    def run(self) -> list[Order]:
        options, is_hyper = self.options, self.options.search == "hyper"
        refined = is_hyper * min(_REFINED, 1 + options.trials // _REFINED)
        first = self._trials()
        total = len(first) + is_hyper * options.trials
        drawn = numbered_trials(options.trials, options.seed) if is_hyper else ()
        shown = tqdm(
            total=total + refined, desc="trials", disable=not options.progress, leave=False
        )
        with closing(self._runner()) as runner, shown as bar:
            self._take(runner.run(chain(first, drawn)), 0, bar)
            if is_hyper and not self.budget.spent():
                self._take(runner.run(refining(self.best(refined))), total, bar)
        return self.best() or [greedy_order(self.network, options.seed)]

    def _trials(self) -> list[Trial]:
        """The trials that need not be drawn."""
        options, count = self.options, len(self.network.terms)
        greedy = Trial("one greedy", {"seed": options.seed})
        several = Trial("random greedy", {"ntrials": options.trials, "seed": options.seed})
        if options.search == "hyper":
            few = min(options.trials, _RANDOM_GREEDY)
            return [greedy, Trial("random greedy", {"ntrials": few, "seed": options.seed})]
        if options.search == "optimal":
            return [Trial("exact")]
        if options.search == "auto" and count <= POOL_UP_TO:
            return [Trial("candidates", {"trials": options.trials, "seed": options.seed})]
        return [greedy if count > _RANDOM_UP_TO else several]

    def _take(self, results: Iterator[tuple[int, Order]], offset: int, bar: Any) -> None:
        """Note what trials find, in whatever order they end."""
        for number, order in results:
            place = number + offset
            self.found[order] = min(self.found.get(order, place), place)
            if len(self.found) > 1:  # now, while the search runs, not when it must be over
                self.cost(order)
            if not bar.disable:
                bar.set_postfix_str(f"best {self.cost(self.best(1)[0]):.3g}", refresh=False)
                bar.update(max(place + 1 - bar.n, 0))
        bar.refresh()

    def best(self, count: int | None = None) -> list[Order]:
        """The cheapest orders; among equals that of the earliest trial."""
        if len(self.found) < 2:
            return list(self.found)
        return sorted(self.found, key=lambda order: (self.cost(order), self.found[order]))[:count]

    def cost(self, order: Order) -> float:
        """What the order costs by the options' objective; infinite beyond floating point."""
        if order not in self.costs:
            try:
                cost = self._tree_costs(order)
            except OverflowError:
                cost = math.inf
            self.costs[order] = cost
        return self.costs[order]

    # ------------------------------------------------------------------------ where trials run

    def _runner(self) -> Runner:
        """Right here if that ends in time by itself; else where a trial can be stopped."""
        parallel = self.options.parallel if self.options.search == "hyper" else None
        work = (self.network, self.options.minimize, self.budget)
        if isinstance(parallel, str) or hasattr(parallel, "submit"):
            return Executor(*work, parallel)
        if parallel or not self._is_easy():
            return Processes(*work, parallel or 1)
        return Here(*work)

    def _is_easy(self) -> bool:
        left = self.budget.left
        if left is None or is_exact(self.network.terms):
            return True
        if self.options.search not in ("auto", "greedy"):
            return False
        start = time.monotonic()
        greedy_order(self.network, self.options.seed)
        runs = 2 * self.options.trials + _CANDIDATES
        return (time.monotonic() - start) * runs < _EASE * left
