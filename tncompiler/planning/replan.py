"""Costs of what was planned: orders at other sizes, joint programs, gradients on their own trees.

In: a logical program, the orders of its networks, sizes. Out: numbers by the plan's objective, and
the gradients that are cheaper than those of the orders reversed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tncompiler.ir.passes.adjoint import GradientOrder
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Binding
from tncompiler.planning.candidates import Network, candidate_orders
from tncompiler.planning.choose import networks_of
from tncompiler.planning.cost import step_flops
from tncompiler.planning.gradients import Sets, best_gradients, may_replan
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair
from tncompiler.planning.timing import program_us
from tncompiler.planning.tree_cost import tree_cost


def orders_cost(
    program: Program,
    orders: Mapping[str, tuple[Pair, ...]],
    sizes: Binding,
    options: PlanOptions,
    wrt: Collection[str] = (),
) -> float:
    """What chosen orders cost at other sizes, with their gradients, by the plan's objective."""
    rates = as_machine(options.machine).planning
    return sum(
        tree_cost(network, orders[name], options.minimize, rates)
        for name, network in networks_of(program, sizes, wrt).items()
        if name in orders
    )


def choose_gradients(
    program: Program,
    orders: Mapping[str, tuple[Pair, ...]],
    nominal: Binding,
    options: PlanOptions,
    wrt: Collection[str],
) -> dict[str, GradientOrder]:
    """For networks in these orders, the gradients that are cheaper than the order reversed."""
    rates = as_machine(options.machine).planning
    found = {}
    for name, network in replannable(program, nominal, options, wrt).items():
        if name not in orders:
            continue
        others = candidate_orders(network, options.trials, options.seed)
        sets = Sets(network, options.minimize, rates)
        best = best_gradients(sets, orders[name], others, options)
        if not best.reverses:
            step = program.producers[name]
            found[name] = GradientOrder(step, best.pairs, best.results)
    return found


def replannable(
    program: Program, nominal: Binding, options: PlanOptions, wrt: Collection[str]
) -> dict[str, Network]:
    """The networks whose gradients may be cheaper on trees of their own.

    Networks with scalar factors are left out: a factor is applied to one of the operands, so that
    their products are not what the forward pass makes.
    """
    return {
        name: network
        for name, network in networks_of(program, nominal, wrt).items()
        if may_replan(network, options)
        and len(network.terms) == len(program.producers[name].operands)
    }


def joint_cost(program: Program, nominal: Binding, options: PlanOptions) -> float:
    """What a scheduled program costs by the objective that its orders were chosen by."""
    if options.minimize == "flops":
        return float(sum(step_flops(program, s).evaluate(nominal) for s in program.steps))
    return program_us(program, nominal, as_machine(options.machine).planning)
