"""Which launches a program becomes: pairwise ones, one chain, or several one after the other.

In: a scheduled program. Out: the plan that is predicted to take the least time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tncompiler.backends.triton.actions import Launch, count_launches
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.flatten import flatten
from tncompiler.backends.triton.fuse import fuse, program_low_dtype
from tncompiler.backends.triton.predict import predicted_us
from tncompiler.backends.triton.stretches import NONE, Refused, chain_actions, cut_actions
from tncompiler.ir.function_body import expand_functions
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Binding

CLEAR = 0.7  # of one chain's time: what a plan of more launches must promise, as all are predicted
MOST_REFUSED = 4  # kinds of chains, of which each takes minutes to try


class LaunchPlan(NamedTuple):
    """What is launched, and the program whose values that makes."""

    program: Program
    actions: Sequence[Launch]


def plan_launches(program: Program, refused: Refused = NONE) -> LaunchPlan:
    """The program as launches and steps for the host.

    It is cut into more launches only where one chain of it all does not fit, or is clearly slower.
    ``refused``: chains that it must not have; from MOST_REFUSED on it has none.
    """
    program = expand_functions(program)
    low, flat = program_low_dtype(program), flatten(program)
    pairwise = LaunchPlan(flat, fuse(flat, low))
    if len(refused) >= MOST_REFUSED:
        return pairwise
    try:
        chained = LaunchPlan(program, chain_actions(program, low, refused))
        fewer = count_launches(chained.actions) < count_launches(pairwise.actions)
        if planned_us(chained) * (CLEAR if fewer else 1.0) < planned_us(pairwise):
            return chained
    except Unfit:
        """It has no chain as a whole; stretches of it may."""
    cut = LaunchPlan(program, cut_actions(program, low, refused))
    return min(pairwise, cut, key=planned_us)


def fastest(programs: Sequence[Program], sizes: Binding) -> Program:
    """Of programs for the same results the one whose launches are predicted to take least."""

    def cost(program: Program) -> tuple[float, int]:
        plan = plan_launches(program)
        return planned_us(plan, sizes), count_launches(plan.actions)

    return min(programs, key=cost)


def planned_us(plan: LaunchPlan, sizes: Binding | None = None) -> float:
    """Predicted microseconds of a plan of launches."""
    return predicted_us(plan.actions, plan.program, sizes)
