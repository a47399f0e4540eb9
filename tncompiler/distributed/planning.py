"""Programs for ranks: rank 0 plans, all make the same programs of what it sends.

In: a compilation, the sizes and dtypes of a call, the leaves that gradients are asked for. Out:
forward and backward programs with loops, the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.cuts import (
    Setting,
    choose_cuts,
    held_by_slice,
    ranks_us,
    sent_us,
    slices_of,
)
from tncompiler.distributed.link import as_cluster
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.rank_plan import RankPlan
from tncompiler.ir.dtypes import LOW_PRECISION, NUMPY_ONLY
from tncompiler.ir.errors import PlanError, TncError
from tncompiler.ir.passes.partition import TrainingPrograms, partition
from tncompiler.ir.program import Program
from tncompiler.planning.fit import UNLIMITED
from tncompiler.planning.memory import held_bytes, peak_bytes
from tncompiler.planning.plan import ContractionPlan
from tncompiler.planning.slicing import Cut, apply_cuts

if TYPE_CHECKING:  # which loads torch
    from tncompiler.distributed.team import Team

_FAILED = "failed: "
_HALVINGS = 6  # of slices that crowd a cache, at most
_CROWDED = 1.2  # times as long as alone: from which on other slices are worth a look
_SENDING = 0.05  # of the time: what ranks send from which on other orders are worth a look


@dataclass(frozen=True, slots=True)
class RankPrograms:
    """What ranks run for one combination of shapes; ``training`` where gradients are asked for."""

    plan: RankPlan
    forward: Program
    training: TrainingPrograms | None

    @property
    def passes(self) -> tuple[Program, ...]:
        """Forward, and backward if there is one."""
        return (self.forward,) if self.training is None else (self.forward, self.training.backward)

    @property
    def peak(self) -> int:
        """The most bytes of computed values that a rank has at one time."""
        forward, *backward = self.passes
        held = held_bytes(forward, {}) if backward else 0
        return max(peak_bytes(forward, {}), *(held + peak_bytes(one, {}) for one in backward), 0)


def backends_on_cpu(dtypes: Collection[str]) -> tuple[str, ...]:
    """What may run slices on a CPU; the last one may be NumPy."""
    if set(NUMPY_ONLY).intersection(dtypes):
        return ("numpy",)
    return ("torch",) if set(LOW_PRECISION).intersection(dtypes) else ("torch", "numpy")


class RankPlanner:
    """One call's plan, for so many ranks; the fastest of some backends runs it."""

    def __init__(
        self,
        compilation: Compilation,
        call: Call,
        wrt: tuple[str, ...],
        ranks: Ranks,
        world: int,
        backends: Sequence[str] = ("torch",),
    ) -> None:
        self.compilation, self.call, self.wrt = compilation, call, wrt
        self.backends = backends
        options = compilation.options
        limit = UNLIMITED if options.memory_limit is None else int(options.memory_limit)
        self.setting = Setting(
            world=world,
            slices=ranks.slices or world,
            asked=ranks.slices is not None,
            limit=limit,
            cluster=as_cluster(ranks.machine or options.machine),
        ).on(backends[0])

    def programs(self, team: Team) -> RankPrograms:
        """The programs, from the plan of rank 0; an error there is one on every rank."""
        text = self._text() if team.rank == 0 else None
        shared = team.share_text(text)
        if shared.startswith(_FAILED):
            raise PlanError(shared.removeprefix(_FAILED), where=self.compilation.place())
        return self.made(RankPlan.from_json(shared))

    def _text(self) -> str:
        try:
            return self.planned().to_json()
        except TncError as error:
            return f"{_FAILED}{error.what}"

    # ---------------------------------------------------------------- on rank 0

    def planned(self) -> RankPlan:
        """Orders and cuts. Raises: PlanError if the limit of memory cannot be kept.

        Where ranks send much, the orders that are best by other measures are cut as well, and the
        fastest is taken: one that is slower on one rank may send less. So are more slices, and
        orders for less memory, where slices of all ranks crowd the cache that they share.
        """
        limit = self.setting.limit
        orders = self.orders(limit)
        ways = self._ways(next(orders), limit)
        if ways[0].sent_us > _SENDING * ways[0].time_us:
            ways += [way for order in orders for way in self._ways(order, limit)]
        best = min(ways, key=lambda way: way.order(limit))
        if limit != UNLIMITED:  # slices are there for the sake of memory
            best = min(best, *self._less_crowded(best), key=lambda way: way.order(limit))
        self._check(best.peak)
        return best.plan

    def _less_crowded(self, way: _Way) -> list[_Way]:
        """Plans whose slices leave the others their share of a cache: the same orders cut further
        and, if ranks still slow each other down, orders for as much memory as that is, or half."""
        found = [way]
        while self._is_crowded(found[-1]) and len(found) < _HALVINGS:
            finer = self._finer(found[-1])
            if finer.slices == found[-1].slices:
                break
            found.append(finer)
        share = self.setting.cluster.cache_share(self.setting.world)
        for limit in (int(share), int(share / 2)) if share < math.inf else ():
            if self._is_crowded(found[-1]) and limit < found[-1].held:
                with suppress(PlanError):  # there may be none
                    ways = self._ways(next(self.orders(limit)), limit)
                    found.append(min(ways, key=lambda way: way.time_us))
        return found

    def _is_crowded(self, way: _Way) -> bool:
        return self.setting.cluster.crowding(self.setting.world, way.held) > _CROWDED

    def _finer(self, way: _Way) -> _Way:
        """Twice as many slices, if that is predicted to be faster."""
        plan = way.plan
        more = replace(self.setting, slices=2 * way.slices, asked=False)
        setting = more.on(plan.backend)
        if not self.wrt:
            return self._call(plan.plan, plan.forward, setting)
        return self._step(plan.plan, plan.saves, plan.forward, plan.backward, setting)

    def orders(self, limit: int) -> Iterator[tuple[Compilation, ContractionPlan]]:
        """Plans within a limit of memory, each with the problem that it is the plan of: as it is
        asked for; where time is the question and no order is given, the best by arithmetic and by
        memory as well."""
        given = self.compilation
        asked = given.options.minimize
        free = asked == "time" and given.fixed_plan is None and given.options.path is None
        found: set[object] = set()
        for objective in (asked, *(("flops", "memory") if free else ())):
            bound = self._bound()
            bound.options = replace(
                bound.options,
                minimize=objective,
                memory_limit=None if limit == UNLIMITED else limit,
            )
            try:
                plan = bound.plan({}, self.call.dtypes, self.wrt)
            except PlanError:
                if not found:
                    raise
                continue  # by this order the limit of memory cannot be kept
            if plan.networks not in found:
                yield bound, plan
            found.add(plan.networks)

    def _ways(self, order: tuple[Compilation, ContractionPlan], limit: int) -> list[_Way]:
        """A plan's orders for each backend, cut further than the limit of memory asks for."""
        settings = (replace(self.setting, limit=limit).on(backend) for backend in self.backends)
        return [self._way(*order, setting) for setting in settings]

    def _way(self, bound: Compilation, plan: ContractionPlan, setting: Setting) -> _Way:
        if not self.wrt:
            return self._call(plan, bound.inference(self.call.dtypes, {}).fitted.cuts, setting)
        fitted = bound.training_step(self.call.dtypes, {}, self.wrt).fitted
        steps = [
            self._step(plan, saves, fitted.forward.cuts, fitted.backward.cuts, setting)
            for saves in (True, False)
        ]
        return min(steps, key=lambda step: step.order(setting.limit))

    def _call(self, plan: ContractionPlan, start: tuple[Cut, ...], setting: Setting) -> _Way:
        """A call without gradients."""
        program = self._twin(plan).scheduled(self.call.dtypes, {})[0]
        cuts = choose_cuts(program, setting, start)
        made = RankPlan(plan, cuts, backend=setting.backend)
        return self._timed(RankPrograms(made, apply_cuts(program, cuts), None), setting)

    def _step(
        self,
        plan: ContractionPlan,
        saves: bool,
        start: tuple[Cut, ...],
        start_backward: tuple[Cut, ...],
        setting: Setting,
    ) -> _Way:
        """A training step that saves values, or makes them again in its slices."""
        programs = self._partition(plan, saves)
        forward = choose_cuts(programs.forward, setting, start)
        held = held_bytes(programs.forward, {})
        later = replace(setting, limit=max(setting.limit - held, 0))
        backward = choose_cuts(programs.backward, later, start_backward)
        made = RankPlan(plan, forward, backward, saves, setting.backend)
        return self._timed(self._stepping(made, programs), setting)

    def _timed(self, made: RankPrograms, setting: Setting) -> _Way:
        world, cluster = setting.world, setting.cluster
        time = sum(ranks_us(one, world, cluster) for one in made.passes)
        sent = sum(sent_us(one, world, cluster) for one in made.passes)
        nests = [nest for program in made.passes for nest in slices_of(program)]
        return _Way(
            made.plan,
            made.peak,
            time,
            sent,
            slices=max((nest.count for nest in nests), default=1),
            held=max(map(held_by_slice, nests), default=0),
        )

    def _check(self, peak: int) -> None:
        limit = self.setting.limit
        if peak > limit:
            raise PlanError(
                f"memory_limit {limit:,} B cannot be kept on a rank: the least that was found is "
                f"{peak:,} B"
            )

    # ---------------------------------------------------------------- on every rank

    def made(self, plan: RankPlan) -> RankPrograms:
        """The programs that a plan says, without a look at the clock."""
        if not self.wrt:
            program = self._twin(plan.plan).scheduled(self.call.dtypes, {})[0]
            return RankPrograms(plan, apply_cuts(program, plan.forward), None)
        return self._stepping(plan, self._partition(plan.plan, plan.saves))

    def _stepping(self, plan: RankPlan, cut: TrainingPrograms) -> RankPrograms:
        """The programs of a training step, with the plan's loops."""
        looped = replace(
            cut,
            forward=apply_cuts(cut.forward, plan.forward),
            backward=apply_cuts(cut.backward, plan.backward),
        )
        return RankPrograms(plan, looped.forward, looped)

    def _partition(self, plan: ContractionPlan, saves: bool) -> TrainingPrograms:
        twin = self._twin(plan)
        joint, count = twin.cheapest_joint(self.call.dtypes, {}, self.wrt)
        return partition(joint, count, None if saves else frozenset(joint.outputs[:count]))

    def _twin(self, plan: ContractionPlan) -> Compilation:
        """The problem in the orders of a plan; what depends on the time of day is left out.

        It is brought into the networks that the plan is of by what the plan was made for.
        """
        twin = self._bound()
        options = replace(twin.options, max_seconds=None, path=None, progress=False)
        twin.options = replace(options, minimize=plan.minimize)
        twin.fixed_plan = plan
        return twin

    def _bound(self) -> Compilation:
        """The problem at the very sizes of the call, so that every size is a number."""
        given = self.compilation
        return Compilation(
            given.container.pack(given.outputs),
            [leaf.name for leaf in given.inputs],
            {**given.binding, **self.call.free},
            given.fixed_plan or given.options,
            library=given.library,
        )


@dataclass(frozen=True, slots=True)
class _Way:
    """Orders with cuts, their peak on a rank, and their predicted microseconds.

    ``sent_us``: those that ranks spend sending. ``slices``: the most that a stage has; ``held``:
    the bytes that one of them works on.
    """

    plan: RankPlan
    peak: int
    time_us: float
    sent_us: float
    slices: int
    held: int

    def order(self, limit: int) -> tuple[int, float]:
        """The least memory beyond the limit, then the least time."""
        return max(self.peak - limit, 0), self.time_us
