"""Scheduled programs inside a limit of memory: other orders, and cuts to start from.

Under a limit any of several programs may be the one that fits; each is made on demand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tncompiler.debug import watcher
from tncompiler.ir.errors import PlanError
from tncompiler.ir.passes import LAYOUT_PASSES, run_passes
from tncompiler.ir.passes.apart import sum_apart, summed_axes
from tncompiler.ir.program import Program
from tncompiler.planning.fit import UNLIMITED
from tncompiler.planning.memory import peak_bytes
from tncompiler.planning.schedule import schedule
from tncompiler.planning.sliced_network import slice_program
from tncompiler.planning.slicing import Cut, apply_cuts, fit_program, largest_alive
from tncompiler.problem import Nominal
from tncompiler.scheduling import Scheduling

MOST_SUMMED_APART = 4  # indices of a network that carries exponents that are cut though summed

Alternative = tuple[Program, Any, tuple[Cut, ...]]  # a program, its orders, cuts to start from


class Limiting(Scheduling):
    """A problem whose programs are to fit into memory."""

    @property
    def _limit(self) -> int:
        limit = self.options.memory_limit
        return UNLIMITED if limit is None else int(limit)

    def _alternatives(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> Iterator[Alternative]:
        """The scheduled program; under a limit also in other orders, and with cuts to start from.

        The others are the orders that other objectives give; where a network is large, cotengra's
        order for it sliced is the only one.
        """
        program, orders = self.scheduled(dtypes, nominal, wrt)
        if self.options.memory_limit is None or self._is_given:
            yield program, orders, ()
            return
        if not wrt and peak_bytes(program, nominal) <= self._limit:
            yield program, orders, ()
            return
        networks = (
            []
            if self.stabilized
            else list(self._sliced_networks(dtypes, nominal, orders, self._limit))
        )
        yield from networks
        if networks:
            return
        yield program, orders, ()
        if self.stabilized and not self._fits(program, nominal):
            yield from self._summed_apart(dtypes, nominal, orders)
        seen = [orders]
        for minimize in ("memory", "flops"):
            if self._is_late():
                return
            options = replace(self.options, minimize=minimize)
            program, others = self._schedule(dtypes, nominal, wrt, options)
            if others not in seen:
                seen.append(others)
                yield program, others, ()

    def _fits(self, program: Program, nominal: Nominal) -> bool:
        """Whether cuts alone bring the program inside the limit."""
        with self._one_call() as budget:
            fitted = fit_program(program, nominal, self._limit, self._rates, budget=budget)
        return fitted.peak <= self._limit

    def _is_late(self) -> bool:
        """Whether the time of the call that asks is over."""
        with self._one_call() as budget:
            return budget.late()

    def _sliced_networks(
        self, dtypes: tuple[str, ...], nominal: Nominal, orders: Any, limit: int
    ) -> Iterator[Alternative]:
        """The program with its largest network sliced by cotengra, aimed lower until it fits."""
        logical = self.logical(dtypes)
        for share in (1, 2, 4, 8, 16, 32, 64):
            target = max(limit // share, 1)
            with self._one_call() as budget:
                sliced = slice_program(logical, orders, nominal, target, self.options.seed, budget)
            if sliced is None:
                return
            program, made = schedule(logical, nominal, self.options, sliced.orders)
            program = self._laid_out(program)
            fits = peak_bytes(apply_cuts(program, sliced.cuts), nominal) <= limit
            if fits or share == 64 or self._is_late():
                yield program, made, sliced.cuts
                return

    def sliced(
        self, dtypes: tuple[str, ...], orders: Any, limit: int
    ) -> tuple[Program, tuple[Cut, ...]] | None:
        """The program with cotengra's cuts for its largest network, all sizes being numbers; None
        where no network is large."""
        for program, _, cuts in self._sliced_networks(dtypes, {}, orders, limit):
            return program, cuts
        return None

    def _summed_apart(
        self, dtypes: tuple[str, ...], nominal: Nominal, orders: Any
    ) -> Iterator[Alternative]:
        """The program cut along indices that are summed, one more of them until it fits.

        A value has one exponent for all positions of such an index; here blocks have their own.
        """
        program, _ = schedule(self.logical(dtypes), nominal, self.options, orders)
        axes, least = summed_axes(program), math.inf
        cuts: tuple[Cut, ...] = ()
        while least > self._limit and len(cuts) < MOST_SUMMED_APART and not self._is_late():
            tried = []
            for axis in axes:
                apart, more = sum_apart(program, axis), (*cuts, Cut(*axis, 1, sink=True))
                laid_out = self._laid_out(apart)
                peak = peak_bytes(apply_cuts(laid_out, more), nominal)
                tried.append((peak, axis, apart, laid_out, more))
            best = min(tried, key=lambda one: one[0], default=None)
            if best is None or best[0] >= least:
                return
            least, axis, program, laid_out, cuts = best
            axes.remove(axis)
            yield laid_out, orders, cuts

    def _laid_out(self, program: Program) -> Program:
        """A scheduled program after all passes, axes placed by one look at each value."""
        passes = (*self._passes(), *LAYOUT_PASSES)
        return run_passes(program, passes, scheduled=True, watcher=watcher())

    def _too_small(self, least: int, program: Program, nominal: Nominal) -> PlanError:
        name, size = largest_alive(program, nominal)
        found, more = "the least that was found is", ""
        if self._is_late():
            found, more = "the least that max_seconds left time to find is", ", or more max_seconds"
        return PlanError(
            f"memory_limit {self._limit:,} B cannot be kept: {found} "
            f"{least:,} B, where {name!r} takes {size:,} B",
            where=self.place(),
            fix=f"give memory_limit={least} or more{more}",
        )
