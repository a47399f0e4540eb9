"""Choose the order of every network of a program for the work that will run.

In: a logical program, integers for its free sizes, options, the arguments that gradients are asked
for. Out: SSA pairs by the name of each network's value.
"""

from __future__ import annotations

from collections.abc import Collection

from tncompiler.ir.passes.adjoint import reachable_from
from tncompiler.ir.program import Contract, Program, Step, label_sizes, operand_values
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.candidates import Network
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair
from tncompiler.planning.search import find_orders
from tncompiler.planning.workers import Budget


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

    ``wrt``: arguments whose gradients the same call computes. ``cached``: products of parameters
    are made once for many calls, and cost nothing here. ``budget``: the time all searches have.
    """
    budget = budget or Budget.of(options)
    return {
        name: best_order(network, options, budget)
        for name, network in networks_of(program, nominal, wrt, cached=cached).items()
        if len(network.terms) > 2
    }


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
    network: Network, options: PlanOptions, budget: Budget | None = None
) -> tuple[Pair, ...]:
    """The candidate with the least cost; the first among equals."""
    return find_orders(network, options, budget)[0]


def _network(
    program: Program,
    step: Step,
    nominal: Binding,
    active: Collection[str],
    moving: Collection[str],
    cached: bool,
) -> Network | None:
    op = step.op
    if not isinstance(op, Contract) or len(step.operands) < 3:
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
    )


def _moving(program: Program) -> set[str]:
    """Every value that depends on what a call brings: all but parameters and constants."""
    found = {a.value.name for a in program.arguments if a.kind not in ("param", "constant")}
    for step in program.steps:
        if found.intersection(step.operands):
            found.add(step.out.name)
    return found
