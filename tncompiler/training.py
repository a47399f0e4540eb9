"""Programs with their gradients: forward and backward as one, cut in two, inside a limit of memory.

In: scheduled programs, the leaves that gradients are asked for. Out: training steps and joint
programs, and programs for tangents. The fastest of those that fit, by predicted time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tncompiler.debug import show, watcher
from tncompiler.ir.passes import JOINING_PASSES, SINKING_PASSES, run_passes
from tncompiler.ir.passes.adjoint import GradientOrder, adjoint
from tncompiler.ir.passes.partition import TrainingPrograms
from tncompiler.ir.passes.segments import keep_states, segment_scans
from tncompiler.ir.passes.tangent import tangent
from tncompiler.ir.program import Program
from tncompiler.ir.scans.steps import has_scans
from tncompiler.limiting import Alternative, Limiting
from tncompiler.planning.fit import FittedOrders, FittedStep, fastest, fit_step
from tncompiler.planning.replan import choose_gradients, joint_cost, replannable
from tncompiler.planning.schedule import schedule
from tncompiler.planning.slicing import Cut, largest_alive
from tncompiler.problem import Nominal


class Training(Limiting):
    """A problem whose outputs are differentiated."""

    def training(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> TrainingPrograms:
        """Forward and backward programs, for gradients by the leaves named in `wrt`."""
        return self.training_step(dtypes, nominal, wrt).fitted.programs

    def training_step(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> FittedOrders[FittedStep]:
        """Forward and backward programs inside the limit of memory, and how they were chosen."""
        nominal = self.planned_sizes(dtypes, nominal, wrt)

        def make() -> FittedOrders[FittedStep]:
            limit = self._limit
            found = self._fitted_steps(dtypes, nominal, wrt)
            best = fastest(found, limit)
            if best.fitted.peak > limit:
                programs = best.fitted.programs
                tallest = max(
                    (programs.forward, programs.backward),
                    key=lambda program: largest_alive(program, nominal)[1],
                )
                raise self._too_small(best.fitted.peak, tallest, nominal)
            return replace(best, cut=self._was_cut(dtypes, nominal))

        return self._once(  # type: ignore[no-any-return]
            ("training", dtypes, tuple(nominal.items()), wrt), make
        )

    def _fitted_steps(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> list[FittedOrders[FittedStep]]:
        """The training steps that compete, each as far inside the limit as it goes."""
        recompute = str(self.options.recompute)
        found: list[FittedOrders[FittedStep]] = []
        with self._one_call() as budget:
            for joint, orders, cuts, count in self._joints(dtypes, nominal, wrt):
                show(3, "joint program", joint.to_text)
                if found and budget.late():
                    break
                step = fit_step(
                    joint, count, nominal, self._limit, self._rates, recompute, cuts, budget
                )
                found.append(FittedOrders(orders, step))
        return found

    def _joints(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> list[tuple[Program, Any, tuple[Cut, ...], int]]:
        """Programs with their gradients, orders, cuts to start from, and outputs before gradients.

        The cheapest one; under a limit of memory all, since any may be the one that fits.
        """
        found, tried = [], []
        for program, orders, cuts in self._to_differentiate(dtypes, nominal, wrt):
            count = len(program.outputs)  # values, then scales
            for kept in self._keeping(program):
                joint = self._differentiated(kept, wrt, nominal)
                found.append((joint, orders, cuts, count))
            tried += [] if cuts else [orders]
        if self._may_replan(dtypes, nominal, wrt):
            alone = self._ordered(dtypes, nominal, (), self.options)[1]  # best for the value
            for orders in [*tried, *([] if alone in tried else [alone])]:
                joints = self._replanned(dtypes, nominal, wrt, orders)
                found += [(joint, orders, (), len(self.outputs)) for joint in joints]
        if self.options.memory_limit is not None or len(found) == 1:
            return found
        return [min(found, key=lambda one: joint_cost(one[0], nominal, self.options))]

    def _to_differentiate(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> Iterator[Alternative]:
        """What `_alternatives` gives, axes as they come where gradients are to share a layout."""
        if self.places_by_time and (self.options.memory_limit is None or self._is_given):
            yield *self._ordered(dtypes, nominal, wrt, self.options), ()
            return
        for program, orders, cuts in self._alternatives(dtypes, nominal, wrt):
            if not cuts and self.places_by_time:  # cuts name axes of the program as laid out
                program = self._merged(dtypes, nominal, orders)
            yield program, orders, cuts

    def _may_replan(self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]) -> bool:
        """Whether gradients from other trees may be cheaper, and there is time to look."""
        if self.stabilized:  # their trees are those of the network without exponents
            return False
        logical, wanted = self.logical(dtypes), self._planned_for(wrt)
        some = bool(replannable(logical, nominal, self.options, wanted))
        with self._one_call() as budget:
            return some and not budget.spent()

    def _keeping(self, program: Program) -> list[Program]:
        """The program; where asked for or under a limit also with scans that keep less."""
        limited, recompute = self.options.memory_limit is not None, str(self.options.recompute)
        if not has_scans(program):
            return [program]
        if recompute == "always":
            return [keep_states(program)]
        if not limited or recompute == "never":
            return [program]
        return [program, keep_states(program), segment_scans(program)]

    def _replanned(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], orders: Any
    ) -> Iterator[Program]:
        """The program in these orders with gradients on trees of their own; none if no gain."""
        logical, wanted = self.logical(dtypes), self._planned_for(wrt)
        gradients = choose_gradients(logical, orders, nominal, self.options, wanted)
        if gradients:
            ordered = self._merged(dtypes, nominal, orders)
            yield self._differentiated(ordered, wrt, nominal, gradients)

    def _merged(self, dtypes: tuple[str, ...], nominal: Nominal, orders: Any) -> Program:
        """The program in these orders with axes as they come, so that gradients share a layout."""
        ordered, _ = schedule(self.logical(dtypes), nominal, self.options, orders)
        return self._simplified(ordered, self._passes())

    def _differentiated(
        self,
        program: Program,
        wrt: tuple[str, ...],
        nominal: Nominal,
        gradients: Mapping[str, GradientOrder] | None = None,
    ) -> Program:
        """A scheduled program with its gradients, scheduled again."""
        reverse = adjoint(program, wrt, seeded=len(self.outputs), orders=gradients)
        sinking = JOINING_PASSES if self.spreads else SINKING_PASSES
        reverse = run_passes(reverse, sinking, watcher=watcher())
        joint, _ = schedule(reverse, nominal, self.options)
        return self._finished(joint, nominal)

    def cheapest_joint(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> tuple[Program, int]:
        """Forward and backward as one program without loops, and its outputs before gradients."""
        found = self._joints(dtypes, nominal, wrt)
        joint, _, _, count = min(found, key=lambda one: joint_cost(one[0], nominal, self.options))
        return joint, count

    def joint(self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]) -> Program:
        """Forward and backward as one program."""
        cut = self.training(dtypes, nominal, wrt)
        cotangents = tuple(a for a in cut.backward.arguments if a.kind == "cotangent")
        count = len(cut.forward.outputs) - len(cut.saved)
        made = {step.out.name for step in cut.forward.steps}
        steps = [s for s in cut.backward.steps if s.out.name not in made]
        return Program(
            (*cut.forward.arguments, *cotangents),
            (*cut.forward.steps, *steps),
            (*cut.forward.outputs[:count], *cut.backward.outputs),
            cut.forward.equations,
        )

    def directional(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> Program:
        """The program for outputs and their tangents along `wrt`."""
        nominal = self.planned_sizes(dtypes, nominal)

        def make() -> Program:
            program, _ = self.scheduled(dtypes, nominal)
            moved, _ = schedule(tangent(program, wrt), nominal, self.options)
            return self._finished(moved, nominal)

        return self._once(  # type: ignore[no-any-return]
            ("tangent", dtypes, tuple(nominal.items()), wrt), make
        )
