"""What is decided about a program: looked up if it has been decided before, else searched.

In: a logical program and what choosing needs. Out: `Decisions`. What took time to find is kept, in
memory and on disk; what was cut short is not.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tncompiler.ir.errors import PlanError
from tncompiler.ir.program import Program, operand_values
from tncompiler.ir.scans.steps import programs_within, steps_within
from tncompiler.ir.sizes import Binding
from tncompiler.planning.budget import Budget
from tncompiler.planning.cache import PLANS
from tncompiler.planning.choose import choose_orders
from tncompiler.planning.digest import program_digest
from tncompiler.planning.hyper import Order, order_from
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import check_order


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a search decided: ``orders`` by the name of each network's value; whether it was cut."""

    orders: Mapping[str, Order]
    cut: bool = False


def decide(
    program: Program,
    nominal: Binding,
    options: PlanOptions,
    wrt: Collection[str] = (),
    *,
    cached: bool = False,
    budget: Budget | None = None,
) -> Decisions:
    """The orders of `choose_orders`, from the cache if the same was asked before."""
    budget = budget or Budget.of(options)
    if callable(options.search):
        return Decisions(choose_orders(program, nominal, options, wrt, cached=cached))
    key = _key(program, nominal, options, wrt, cached)
    kept = PLANS.load(key, lambda data: _orders_from(data["orders"], program))
    if kept is not None:
        return Decisions(kept)
    start = time.perf_counter()
    orders = choose_orders(program, nominal, options, wrt, cached=cached, budget=budget)
    if not budget.cut:
        data = {"orders": _orders_data(orders, program)}
        PLANS.store(key, orders, data, time.perf_counter() - start)
    return Decisions(orders, budget.cut)


def _key(
    program: Program, nominal: Binding, options: PlanOptions, wrt: Collection[str], cached: bool
) -> str:
    """What the decisions follow from: program, sizes, gradients, options, versions."""
    content = (
        program_digest(program),
        [(argument.kind, argument.value.dtype) for argument in program.arguments],
        [step.out.dtype for step in program.steps],
        [(symbol.name, number) for symbol, number in nominal.items()],
        sorted(wrt),
        cached,
        options.key(),
        _versions(),
    )
    return blake2b(repr(content).encode(), digest_size=16).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    return tuple(map(package_version, ("tncompiler", "cotengra", "cotengrust")))


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def _orders_data(orders: Mapping[str, Order], program: Program) -> list[Any]:
    """Orders by the position of their step: the names of values are not part of the key."""
    place = {step.out.name: position for position, step in enumerate(steps_within(program))}
    return [[place[name], order] for name, order in orders.items()]


def _orders_from(data: Any, program: Program) -> dict[str, Order]:
    """The orders that a cache holds. Raises: PlanError, or what data of another form raises."""
    orders = {}
    steps = [(inner, step) for inner in programs_within(program) for step in inner.steps]
    for position, pairs in data:
        inner, step = steps[position]
        tensors = sum(1 for value in operand_values(inner, step) if value.shape)
        if tensors < 3 or step.out.name in orders:
            raise PlanError(f"step {position} has no order of its own")
        orders[step.out.name] = check_order(order_from(pairs), tensors)
    return orders
