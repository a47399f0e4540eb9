"""Choose the order of every network of a program for the work that will run.

In: a logical program, integers for its free sizes, options, the arguments that gradients are asked
for. Out: SSA pairs by the name of each network's value.
"""

from __future__ import annotations

from collections.abc import Collection

from tncompiler.ir.passes.adjoint import reachable_from
from tncompiler.ir.program import Contract, Program, Step, label_sizes, operand_values
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.candidates import POOL_UP_TO, Network, candidate_orders, tree_cost
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair


def choose_orders(
    program: Program,
    nominal: Binding,
    options: PlanOptions,
    wrt: Collection[str] = (),
    *,
    cached: bool = False,
) -> dict[str, tuple[Pair, ...]]:
    """The best of the candidates of each network; networks that have one order only are left out.

    ``wrt``: arguments whose gradients the same call computes. ``cached``: products of parameters
    are made once for many calls, and cost nothing here.
    """
    if options.search != "auto":
        return {}
    return {
        name: best_order(network, options)
        for name, network in networks_of(program, nominal, wrt, cached=cached).items()
        if 2 < len(network.terms) <= POOL_UP_TO
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


def best_order(network: Network, options: PlanOptions) -> tuple[Pair, ...]:
    """The candidate with the least cost; the first among equals."""
    rates = as_machine(options.machine).planning
    orders = candidate_orders(network, options.trials, options.seed)
    return min(orders, key=lambda pairs: tree_cost(network, pairs, options.minimize, rates))


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
