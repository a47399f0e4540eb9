"""Choose the order of every network of a program for the work that will run.

In: a logical program, integers for its free sizes, options, the arguments that gradients are asked
for. Out: SSA pairs by the name of each network's value.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from tncompiler.ir.passes.adjoint import reachable_from
from tncompiler.ir.program import (
    Networks,
    Program,
    Scan,
    Step,
    label_sizes,
    operand_values,
    relations_of,
)
from tncompiler.ir.scans.steps import active_arguments, reached_values
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.budget import Budget
from tncompiler.planning.candidates import Network
from tncompiler.planning.exchange import neighbours, shape_of
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair
from tncompiler.planning.rehearse import REHEARSED_UP_TO, Rehearsal, best_rehearsed, faster
from tncompiler.planning.rounds import ROUNDS_UP_TO, order_in_rounds
from tncompiler.planning.search import find_orders
from tncompiler.planning.tree_cost import TreeCosts


def choose_orders(
    program: Program,
    nominal: Binding,
    options: PlanOptions,
    wrt: Collection[str] = (),
    *,
    cached: bool = False,
    budget: Budget | None = None,
) -> dict[str, tuple[Pair, ...]]:
    """The best order of each network; those that have one order only are left out.

    Networks that are the same but for names are planned once, so that a stack of equal layers takes
    no longer to plan than one.

    ``wrt``: arguments whose gradients the same call computes. ``cached``: products of parameters
    are made once for many calls, and cost nothing here. ``budget``: the time all searches have.
    """
    budget = budget or Budget.of(options)
    chosen: dict[str, tuple[Pair, ...]] = {}
    planned: dict[object, tuple[Pair, ...]] = {}
    for name, network in networks_of(program, nominal, wrt, cached=cached).items():
        if len(network.terms) > 2:
            problem = _problem(program, program.producers[name], network)
            if problem not in planned:
                rehearsal = _rehearsal(program, name, network, nominal, options)
                planned[problem] = best_order(network, options, budget, rehearsal)
            chosen[name] = planned[problem]
    active = reached_values(program, tuple(wrt))
    for step in program.steps:
        if isinstance(step.op, Scan):
            operands = operand_values(program, step)
            inner = active_arguments(step.op, operands, active)
            body = _read_whole(step.op)
            chosen.update(choose_orders(body, nominal, options, inner, cached=True, budget=budget))
    return chosen


def _problem(program: Program, step: Step, network: Network) -> object:
    """What the order follows from: the same for the same layer wherever it stands."""
    numbers: dict[str, int] = {}
    operands = tuple(
        (numbers.setdefault(value.name, len(numbers)), value.shape, value.dtype)
        for value in operand_values(program, step)
    )
    roles = (network.active, network.fixed, network.cached)
    return (step.op, operands, step.out.shape, step.out.dtype, *roles)


def _read_whole(op: Scan) -> Program:
    """A scan's body; what it reads whole is fixed: products of it are made once, before."""
    whole = [k >= op.carried and axis is None for k, axis in enumerate(op.sliced)]
    arguments = tuple(
        replace(argument, kind="constant" if fixed else "input")
        for argument, fixed in zip(op.body.arguments, whole, strict=True)
    )
    return replace(op.body, arguments=arguments)


def networks_of(
    program: Program, nominal: Binding, wrt: Collection[str] = (), *, cached: bool = False
) -> dict[str, Network]:
    """The contractions of three operands or more, by the name of their value."""
    active, moving = reachable_from(program, tuple(wrt)), _moving(program)
    found = {
        step.out.name: _network(program, step, nominal, active, moving, cached)
        for step in program.steps
    }
    return {name: network for name, network in found.items() if network is not None}


def best_order(
    network: Network,
    options: PlanOptions,
    budget: Budget | None = None,
    rehearsal: Rehearsal | None = None,
) -> tuple[Pair, ...]:
    """The candidate with the least cost, the first among equals.

    Of time, the best few are rehearsed where that is possible and there is time left; of a large
    network, the best and one in rounds, whose products can be carried out many at a time.
    """
    budget = budget or Budget.of(options)
    rates, count = as_machine(options.machine).planning, len(network.terms)
    costs = TreeCosts(network, options.minimize, rates)
    orders = find_orders(network, options, budget, costs)
    if rehearsal is None or budget.spent():
        return orders[0]
    candidates = [*neighbours(orders[0], count), *orders]
    if rehearsal.is_large:
        candidates = [orders[0], order_in_rounds(network.terms, network.output, network.sizes)]
    different = {shape_of(pairs, count): pairs for pairs in candidates}
    times = [(costs(pairs), pairs) for pairs in different.values()]
    choose = faster if rehearsal.is_large else best_rehearsed
    return choose(rehearsal, sorted(times), rates, budget)


def _rehearsal(
    program: Program, name: str, network: Network, nominal: Binding, options: PlanOptions
) -> Rehearsal | None:
    """The network to be rehearsed; none where time is not the question, or it is too large."""
    asked = options.minimize == "time" and options.search == "auto"
    most = REHEARSED_UP_TO if network.relations else ROUNDS_UP_TO
    if not asked or len(network.terms) > most:
        return None
    step = program.producers[name]
    named = [value for value in operand_values(program, step) if value.shape]
    active = [named[k].name for k in network.active]
    free = [named[k].name for k in network.fixed] if network.cached else []
    return Rehearsal.of(program, step, nominal, options, active, free)


def _network(
    program: Program,
    step: Step,
    nominal: Binding,
    active: Collection[str],
    moving: Collection[str],
    cached: bool,
) -> Network | None:
    op = step.op
    if not isinstance(op, Networks) or len(step.operands) < 3:
        return None
    operands = operand_values(program, step)
    numbers = {k: evaluate(s, nominal) for k, s in label_sizes(op, operands, step.out).items()}
    return Network.of(
        op.inputs,
        op.output,
        numbers,
        step.out.dtype,
        [k for k, value in enumerate(operands) if value.name in active],
        [k for k, value in enumerate(operands) if value.name not in moving],
        cached,
        relations_of(op),
    )


def _moving(program: Program) -> set[str]:
    """Every value that depends on what a call brings: all but parameters and constants."""
    found = {a.value.name for a in program.arguments if a.kind not in ("param", "constant")}
    for step in program.steps:
        if found.intersection(step.operands):
            found.add(step.out.name)
    return found
