"""What an order takes once it is scheduled: the second look at the best few of many orders.

`tree_cost` knows labels only. Here one network is scheduled for real, with its adjoint, and given
its layouts, so that permuting copies, which way round products are computed and values that
forward and backward share are counted as they will run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tncompiler.ir.passes import LAYOUT_PASSES, MERGING_PASSES, SCHEDULED_PASSES, load_pass
from tncompiler.ir.passes.adjoint import adjoint
from tncompiler.ir.program import Argument, Program, Step, operand_values
from tncompiler.ir.sizes import Binding
from tncompiler.planning.budget import Budget
from tncompiler.planning.layout import lay_out
from tncompiler.planning.memory import is_view
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair
from tncompiler.planning.rates import Rates
from tncompiler.planning.schedule import schedule
from tncompiler.planning.stacking import stack_alike
from tncompiler.planning.timing import step_us
from tncompiler.planning.ways import Ways

REHEARSED_UP_TO = 32  # tensors; scheduling more takes longer than the choice gains
SHORTLIST = 3  # orders of a forward pass, which must be planned in 10 ms
STEP_SHORTLIST = 6  # of a training step, where layouts matter more
LAID_OUT_FROM_US = 50.0  # from here on axes are placed by time, as they will be: a millisecond
_COPIES = 1.1  # times the cost without copies: up to there a forward pass keeps them
# times the time of the best as a program: operands read transposed may be as much faster than the
# cost says, which knows them as they lie
_FORMS = 1.5
# times the cost of the best: further than copies move an order, and than stacking does
_WITHIN, _LARGE_WITHIN = 2.0, 3.0
# what surrounds a step (views, names that are let go), which tells where there are hundreds of them
AROUND_US = 1.5


@dataclass(frozen=True)
class Rehearsal:
    """One network on its own: its operands are arguments, its value the output.

    ``wrt``: operands that gradients are computed of. ``free``: operands whose products are made
    once and kept, and cost nothing here.
    """

    program: Program
    wrt: tuple[str, ...]
    free: frozenset[str]
    nominal: Binding
    options: PlanOptions

    @staticmethod
    def of(
        program: Program,
        step: Step,
        nominal: Binding,
        options: PlanOptions,
        active: Collection[str],
        free: Collection[str] = (),
    ) -> Rehearsal:
        """The network of a logical program's step."""
        operands = {value.name: value for value in operand_values(program, step)}
        own = Program(
            tuple(Argument(value, "input") for value in operands.values()),
            (step,),
            (step.out.name,),
            program.equations,
        )
        wrt = tuple(name for name in operands if name in active)
        return Rehearsal(own, wrt, frozenset(free).intersection(operands), nominal, options)

    @property
    def is_large(self) -> bool:
        """Whether the network has more tensors than are usually rehearsed."""
        return len(self.program.arguments) > REHEARSED_UP_TO

    def time_us(self, pairs: tuple[Pair, ...], ways: Ways, least: float = 0.0) -> float:
        """Predicted microseconds of the network in this order, with its adjoint.

        ``least``: what it takes without copies; axes are not placed where there is little to save.
        """
        rates = ways.rates
        program, _ = schedule(
            self.program, self.nominal, self.options, {self.program.outputs[0]: pairs}
        )
        if self.wrt:
            program = _after(SCHEDULED_PASSES, program)
            program, _ = schedule(adjoint(program, self.wrt), self.nominal, self.options)
        if self._repeats:
            program = _after(MERGING_PASSES, program)
        merged = stack_alike(program, self.nominal, rates)
        time = self._steps_us(_after(LAYOUT_PASSES, merged), rates)
        worth = LAID_OUT_FROM_US if self.wrt else max(LAID_OUT_FROM_US, _COPIES * least)
        if not worth < time < math.inf or self.is_large:
            return time
        found = lay_out(merged, self.nominal, ways)
        return time if found is None else min(time, self._steps_us(found, rates))

    def _steps_us(self, program: Program, rates: Rates) -> float:
        """Predicted microseconds of the steps that every call carries out."""
        kept = self._made_once(program)
        left = [step for step in program.steps if step.out.name not in kept]
        around = AROUND_US * sum(not is_view(step) for step in left) if self.is_large else 0.0
        return around + math.fsum(step_us(program, step, self.nominal, rates) for step in left)

    @property
    def _repeats(self) -> bool:
        """Whether two steps may come out the same: with gradients, or where a core comes twice."""
        (step,) = self.program.steps
        return bool(self.wrt) or len(set(step.operands)) < len(step.operands)

    def _made_once(self, program: Program) -> set[str]:
        """Values that depend on free operands alone."""
        kept = set(self.free)
        for step in program.steps:
            if kept.issuperset(step.operands):
                kept.add(step.out.name)
        return kept if self.free else set()


def best_rehearsed(
    rehearsal: Rehearsal,
    ranked: list[tuple[float, tuple[Pair, ...]]],
    rates: Rates,
    budget: Budget,
) -> tuple[Pair, ...]:
    """The fastest of the first few, which come with their costs, the least first.

    Of those that there is time for; at least of one. Of a forward pass the cost that comes with it
    leaves out copies: what costs far more than another one takes need not be tried.
    """
    count = STEP_SHORTLIST if rehearsal.wrt else SHORTLIST
    times: dict[tuple[Pair, ...], float] = {}
    ways = Ways.of(rates)
    for cost, pairs in ranked[:count]:
        if cost > _WITHIN * ranked[0][0] or (times and budget.spent()):
            break
        if not rehearsal.wrt and cost > _FORMS * min(times.values(), default=math.inf):
            break
        times[pairs] = rehearsal.time_us(pairs, ways, cost)
    return min(times, key=times.__getitem__)


def faster(
    rehearsal: Rehearsal,
    ranked: list[tuple[float, tuple[Pair, ...]]],
    rates: Rates,
    budget: Budget,
) -> tuple[Pair, ...]:
    """The faster of the orders of a large network, whose costs leave out what stacking saves."""
    within = [pairs for cost, pairs in ranked if cost <= _LARGE_WITHIN * ranked[0][0]]
    if len(within) == 1 or budget.spent():
        return within[0]
    ways = Ways.of(rates)
    return min(within, key=lambda pairs: rehearsal.time_us(pairs, ways))


def _after(passes: Iterable[str], program: Program) -> Program:
    """What `run_passes` makes of it, which validates besides."""
    for name in passes:
        program = load_pass(name)(program)
    return program
