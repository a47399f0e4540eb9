"""The first half of the pipeline: expressions → logical program → plan → scheduled program.

`Scheduling` makes each on demand and keeps it, and decides which plan a call of some sizes runs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tncompiler.debug import show, watcher
from tncompiler.ir.dtypes import is_differentiable
from tncompiler.ir.errors import PlanError
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import (
    LATE_LAYOUT_PASSES,
    LAYOUT_PASSES,
    LOGICAL_PASSES,
    MERGING_PASSES,
    SPREADING_PASSES,
    STABILIZING_PASSES,
    THINNING_PASSES,
    run_passes,
)
from tncompiler.ir.passes.scans import hoist_invariants
from tncompiler.ir.passes.stabilize import scaled_outputs
from tncompiler.ir.program import Convolve, Networks, Program, operand_values
from tncompiler.ir.scans.steps import change_bodies, steps_within
from tncompiler.ir.validate import validate
from tncompiler.planning.budget import Budget
from tncompiler.planning.decide import Decisions, decide
from tncompiler.planning.digest import program_digest
from tncompiler.planning.layout import lay_out
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import Path, PlanOptions
from tncompiler.planning.order import Pair, order_of_path
from tncompiler.planning.pick import Picker, nearest_powers
from tncompiler.planning.plan import ContractionPlan
from tncompiler.planning.rates import Rates
from tncompiler.planning.replan import orders_cost
from tncompiler.planning.reuse import Reused
from tncompiler.planning.schedule import Orders, schedule
from tncompiler.planning.stacking import stack_alike
from tncompiler.planning.timing import program_us
from tncompiler.planning.ways import Ways
from tncompiler.planning.windows import VENDORS
from tncompiler.problem import Nominal, Problem

LAYOUT_UP_TO = 2_000  # steps; beyond, copies are not weighed by time, which takes seconds
LAYOUT_FROM_US = 50.0  # predicted time from which a search for the best layout pays
# of the predicted time, at most, for which axes of size 1 are taken off: sharding reads programs
# without such views more easily
THINNING_GAIN = 0.97
# about what it takes, for each tensor, to schedule a forward pass, and a training step
PREPARED_S, STEP_PREPARED_S = 0.0005, 0.001


def _lay_out_body(body: Program) -> Program:
    """The body of a scan by one look at each value: a position of it takes little time."""
    return run_passes(body, LAYOUT_PASSES, scheduled=True, watcher=watcher())


def _orders_text(orders: Orders) -> str:
    return "\n".join(f"{name}: {pairs}" for name, pairs in orders.items())


class Scheduling(Problem):
    """A problem with its plans; stages are made on demand, once, under a lock."""

    def __init__(
        self,
        outputs: Any,
        inputs: Sequence[Any] | None,
        sizes: Mapping[Any, Any],
        plan: PlanOptions | ContractionPlan | None,
        parameters_known: bool = True,
        library: str = "torch",
    ) -> None:
        super().__init__(outputs, inputs, sizes)
        self.library = library  # whose rules promote mixed operands
        if plan is not None and not isinstance(plan, PlanOptions | ContractionPlan):
            raise PlanError(
                f"plan is a {type(plan).__name__}",
                where=self.place(),
                fix="give a tnc.PlanOptions or a saved plan",
            )
        self.fixed_plan = plan if isinstance(plan, ContractionPlan) else None
        options = plan if isinstance(plan, PlanOptions) else PlanOptions()
        machine = as_machine(options.machine)
        seen = machine.seen_by(library)
        self.options = options if seen is machine else replace(options, machine=seen)
        self.reused: Reused | None = None  # orders that come from the plan of a similar network
        if parameters_known:
            self.check_parameters()
        self.places_by_time = True  # axes and copies; False for kernels, which read any order
        self._cache: dict[tuple[object, ...], Any] = {}
        self._lock = threading.RLock()
        self._paired = (False,) * len(self.outputs)  # which outputs come with a scale
        self._budget: Budget | None = None  # of the call that is being answered

    def default_dtypes(self, default: str) -> tuple[str, ...]:
        """The dtypes of a call in which undecided leaves have `default`."""
        own = (default if leaf.dtype == "default" else leaf.dtype for leaf in self.ordered)
        return (default, *own)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._cache:
                with self._one_call():
                    self._cache[key] = make()
            return self._cache[key]

    @contextmanager
    def _one_call(self, budget: Budget | None = None) -> Iterator[Budget]:
        """All that is made inside shares the time of one plan, which the outermost begins."""
        with self._lock:
            outer = self._budget
            self._budget = outer or budget or Budget.of(self.options)
            try:
                yield self._budget
            finally:
                self._budget = outer

    def logical(self, dtypes: tuple[str, ...]) -> Program:
        """The simplified program; `dtypes` is the default, then one for each of `ordered`."""

        def make() -> Program:
            default, *own = dtypes
            named = {leaf.name: d for leaf, d in zip(self.ordered, own, strict=True)}
            program = lower(
                self.outputs,
                default_dtype=default,
                binding=self.binding,
                dtypes=named,
                leaves=self.ordered,
                library=self.library,
            )
            program = run_passes(program, LOGICAL_PASSES, watcher=watcher())
            if self.spreads:
                program = run_passes(program, SPREADING_PASSES, watcher=watcher())
            if self.stabilized:  # here, as torch.compile can trace no lock when results are packed
                self._paired = scaled_outputs(program)
            return program

        return self._once(("logical", dtypes), make)  # type: ignore[no-any-return]

    def scheduled(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...] = (),
        *,
        cached: bool = False,
    ) -> tuple[Program, Any]:
        """The program, ordered for gradients by the leaves in `wrt`, and its networks' orders.

        Free sizes are those of a call; the plan is that of `planned_sizes`. ``cached``: ordered
        for calls between which products of parameters are kept.
        """
        planned = self.planned_sizes(dtypes, nominal, wrt)
        return self._schedule(dtypes, planned, wrt, self.options, cached)

    def _schedule(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        options: PlanOptions,
        cached: bool = False,
    ) -> tuple[Program, Any]:
        def make() -> tuple[Program, Any]:
            merged, orders = self._ordered(dtypes, nominal, wrt, options, cached)
            finished = self._placed(merged, nominal)
            show(3, "scheduled program", finished.to_text)
            return finished, orders

        return self._once(  # type: ignore[no-any-return]
            ("scheduled", dtypes, tuple(nominal.items()), wrt, options.minimize, cached), make
        )

    def _ordered(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        options: PlanOptions,
        cached: bool = False,
    ) -> tuple[Program, Any]:
        """The program in the orders planned for these very sizes, its axes as they come."""

        def make() -> tuple[Program, Any]:
            logical = self.logical(dtypes)
            orders = self._orders(logical)
            if orders is None:
                orders = self._chosen(dtypes, nominal, wrt, options, cached).orders
            program, orders = schedule(logical, nominal, options, orders)
            show(1, "orders", lambda: _orders_text(orders))
            return self._simplified(program, self._passes()), orders

        return self._once(  # type: ignore[no-any-return]
            ("ordered", dtypes, tuple(nominal.items()), wrt, options.minimize, cached), make
        )

    def _finished(
        self, program: Program, nominal: Nominal, passes: tuple[str, ...] = MERGING_PASSES
    ) -> Program:
        """A program as `schedule` makes it after these passes, its axes and copies placed."""
        return self._placed(self._simplified(program, passes), nominal)

    def _simplified(self, program: Program, passes: tuple[str, ...]) -> Program:
        return run_passes(program, passes, scheduled=True, watcher=watcher())

    def _placed(self, merged: Program, nominal: Nominal) -> Program:
        """A merged program with its axes and copies placed.

        By one look at each value where the program is short or very long, or the time of the call
        is over; else by predicted time.
        """

        def make() -> Program:
            with self._one_call() as budget:
                whole = hoist_invariants(change_bodies(merged, _lay_out_body))
                if self.places_by_time and not budget.late():
                    whole = self._stacked(whole)
                passes = LATE_LAYOUT_PASSES if budget.late() else LAYOUT_PASSES
                plain = run_passes(whole, passes, scheduled=True, watcher=watcher(), known=merged)
                if not self.places_by_time or len(whole.steps) > LAYOUT_UP_TO:
                    return plain
                return self._placed_by_time(whole, plain, budget)

        return self._once(("placed", merged), make) if nominal else make()

    def _stacked(self, merged: Program) -> Program:
        """A merged program with equal steps carried out as one, by the rates of its library."""
        if not self.spreads:
            return merged
        rates = as_machine(self.options.machine).cpu.libraries[self.library]
        stacked = stack_alike(merged, self.nominal({}), rates)
        if stacked is merged:
            return merged
        return self._simplified(stacked, ("merge_common_steps",))  # what several read, once

    def _placed_by_time(self, merged: Program, plain: Program, budget: Budget) -> Program:
        """The program laid out by time, without axes of size 1 too, or as it is laid out plainly:
        whichever is fastest."""
        usual = self.nominal({})  # one layout for all sizes that are free
        rates = self._rates_for(plain)
        best, least = plain, program_us(plain, usual, rates)
        if not LAYOUT_FROM_US < least < math.inf:
            return plain
        thin = run_passes(merged, THINNING_PASSES, scheduled=True, watcher=watcher(), known=merged)
        gains = {merged: 1.0} if thin is merged else {merged: 1.0, thin: THINNING_GAIN}
        for program, gain in gains.items():
            found = None if budget.late() else lay_out(program, usual, Ways.of(rates), budget.late)
            time = math.inf if found is None else program_us(found, usual, rates)
            if found is not None and time < gain * least:
                best, least = validate(found, scheduled=True, known=program), time
        return best

    @property
    def _rates(self) -> Rates:
        return as_machine(self.options.machine).planning

    def _rates_for(self, program: Program) -> Rates:
        """The rates of the library that a program is likely to run in: torch has convolutions."""
        machine = as_machine(self.options.machine)
        convolves = any(
            isinstance(step.op, Convolve) and step.out.dtype in VENDORS for step in program.steps
        )
        if convolves and self.library == "torch" and machine.cpu is machine:
            return machine.libraries["torch"]
        return machine.planning

    def _passes(self) -> tuple[str, ...]:
        before = STABILIZING_PASSES if self.stabilized else ()
        return (*before, *MERGING_PASSES)

    @property
    def spreads(self) -> bool:
        """Whether what a scan makes may be held for all positions, where that saves time."""
        return self.options.memory_limit is None and self.options.minimize != "memory"

    @property
    def stabilized(self) -> bool:
        """Whether networks carry exponents, and come out as pairs of value and log10 scale."""
        return self.options.stabilize == "exponent"

    # ---------------------------------------------------------------- which plan

    def planned_sizes(
        self, dtypes: tuple[str, ...], sizes: Nominal, wrt: tuple[str, ...] = ()
    ) -> Nominal:
        """The sizes whose plan runs at `sizes`: powers of two around them; see planning/pick.py.

        Where orders are given, or come from a search that is not cheap, the nearest ones. Under a
        limit of memory the very sizes: what fits at others says nothing.
        """
        if not sizes or self.options.memory_limit is not None:
            return sizes
        if self._is_given or self.options.search != "auto":
            return nearest_powers(sizes)

        def make() -> Picker:
            program, wanted = self.logical(dtypes), self._planned_for(wrt)

            def cost(orders: Mapping[str, tuple[Pair, ...]], at: Nominal) -> float:
                return orders_cost(program, orders, at, self.options, wanted)

            return Picker(lambda at: self._chosen(dtypes, at, wrt, self.options).orders, cost)

        with self._one_call():
            picker: Picker = self._once(("picker", dtypes, wrt), make)
            return picker.pick(sizes)

    def _chosen(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        options: PlanOptions,
        cached: bool = False,
    ) -> Decisions:
        """The best orders at these very sizes."""

        def make() -> Decisions:
            wanted, logical = self._planned_for(wrt), self.logical(dtypes)
            with self._one_call() as budget:
                tensors = sum(len(s.operands) for s in logical.steps if isinstance(s.op, Networks))
                budget.keep(tensors * (STEP_PREPARED_S if wanted else PREPARED_S))
                return decide(logical, nominal, options, wanted, cached=cached, budget=budget)

        return self._once(  # type: ignore[no-any-return]
            ("chosen", dtypes, tuple(nominal.items()), wrt, options.minimize, cached), make
        )

    def _planned_for(self, wrt: tuple[str, ...]) -> tuple[str, ...]:
        """The leaves whose gradients count when orders are compared."""
        if self.options.training == "auto":
            return wrt
        if not self.options.training:
            return ()
        leaves = (*self.inputs, *self.params)
        return wrt or tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))

    def _was_cut(self, dtypes: tuple[str, ...], nominal: Nominal) -> bool:
        """Whether this call, or a search for these sizes in an earlier one, ran out of time."""
        asked = (dtypes, tuple(nominal.items()))
        made = [
            m for key, m in self._cache.items() if isinstance(m, Decisions) and asked == key[1:3]
        ]
        now = self._budget is not None and self._budget.cut
        return now or any(decisions.cut for decisions in made)

    def _orders(self, logical: Program) -> Any:
        if self.reused is not None:
            return self.reused.orders
        if self.options.path is not None:
            return self._given_order(logical, self.options.path)
        if self.fixed_plan is None:
            return None
        if self.fixed_plan.digest != program_digest(logical):
            raise PlanError(
                "the plan was made for another network or other sizes",
                where=self.place(),
                fix="make one with tnc.plan(expr, sizes=…)",
            )
        steps = [
            s.out.name for s in steps_within(logical) if isinstance(s.op, Networks) and s.operands
        ]
        networks = self.fixed_plan.networks
        if len(steps) != len(networks):
            raise PlanError(
                f"the plan orders {len(networks)} networks, the expression has {len(steps)}",
                where=self.place(),
                fix="make one with tnc.plan(expr, sizes=…)",
            )
        return {name: network.pairs for name, network in zip(steps, networks, strict=True)}

    def _given_order(self, logical: Program, path: Path) -> dict[str, tuple[Pair, ...]]:
        """The order that the options fix, for the one network of the program."""
        steps = [s for s in logical.steps if isinstance(s.op, Networks) and len(s.operands) > 1]
        if len(steps) != 1:
            raise PlanError(
                f"PlanOptions.path fixes the order of one network, but there are {len(steps)}",
                where=self.place(),
                fix="leave path out, or pass a whole plan",
            )
        (step,) = steps
        operands = operand_values(logical, step)
        scalars = [k for k, value in enumerate(operands) if not value.shape]
        tensors = len(operands) - len(scalars)
        if len(path) < tensors or not scalars:  # as plan.path has it, scalars left out
            return {step.out.name: order_of_path(path, tensors, ())}
        return {step.out.name: order_of_path(path, len(operands), scalars)}

    @property
    def _is_given(self) -> bool:
        """Whether the user fixed the order."""
        given = self.options.path is not None or self.fixed_plan is not None
        return given or self.reused is not None
