"""Measure what the ranks of this computer reach together, for `tnc.simulate` to predict by.

Every rank of a job calls it. Other programs only ever make things slower, so everything is done in
several sweeps, in rounds for a fifth of a second each, and its least time counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache, partial
from itertools import combinations, islice
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from tncompiler.api import compile as compile_network
from tncompiler.calibration import Clock, calibrate
from tncompiler.distributed.cuts import stage_us
from tncompiler.distributed.link import BULK, MESSAGE, Cluster, Link, Node, as_cluster
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.samples import Sample, samples
from tncompiler.distributed.simulate import simulate
from tncompiler.distributed.team import team_of
from tncompiler.dsl import contract, indices
from tncompiler.dsl import input as given
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.machine import Machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.rates import Rates

WORLDS = (1, 2, 4)
SWEEPS = 3  # what disturbs one sweep over everything rarely lasts for all
ROUNDS = 5  # at least, and for so many microseconds: after a rank has waited, calls get faster for
WARM_US = 2e5  # a tenth of a second, by half where they take some milliseconds
LOST_S = 60.0
_BULK = BULK // 4  # numbers of a message larger than caches
_LARGE = MESSAGE // 4  # of a large one
_SMALL = 2**10  # and of a small one, of which each rank of a ring still has its share
_TINY = 512  # slices of next to no work
_WORK = 320, 4  # products of so large matrices, so many: a millisecond or two


def calibrate_ranks(
    machine: Machine | None = None, *, clock: Clock = time.perf_counter, progress: bool = False
) -> Cluster:
    """The cluster that the ranks of this job are, all of one computer; two minutes.

    Every rank calls it, with torch.distributed initialised and as many threads as the work will
    have; up to 4 ranks are measured. ``machine``: what one rank reaches; by default `tnc.calibrate`
    measures it. ``clock``: seconds; the processor's, where others are at work. Give the result to
    `tnc.simulate` and `tnc.Ranks` as ``machine``. ``progress``: a bar, on the first rank.
    Raises: ArgumentError outside of a job.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "there are no ranks to measure",
            where=call_site(),
            fix="call it on every rank, after torch.distributed.init_process_group",
        )
    whole = team_of(dist.group.WORLD, LOST_S)
    if machine is None:
        machine = Machine.from_json(whole.share_text(_alone(clock) if whole.rank == 0 else None))
    found = _Measuring(machine, Stopwatch(clock, progress)).cluster()
    figures = torch.tensor(_figures(found), dtype=torch.float64)
    whole.share([figures])
    return _of_figures(found, figures.tolist())


def _alone(clock: Clock) -> str:
    """What one rank reaches, as JSON."""
    return calibrate(default=False, progress=False, clock=clock).to_json()


Make = Callable[[], Callable[[], object]]  # makes something to run


class Stopwatch:
    """Times what the first ranks of a job do together, while the others wait."""

    def __init__(self, clock: Clock = time.perf_counter, progress: bool = False) -> None:
        self.clock, self.rank = clock, dist.get_rank()
        self.shown = progress and not self.rank
        sizes = [world for world in WORLDS if world <= dist.get_world_size()]
        self.groups = {world: dist.new_group(range(world), backend="gloo") for world in sizes}

    def ranks(self, world: int, **options: Any) -> Ranks:
        return Ranks(self.groups[world] if world > 1 else None, lost_after_s=LOST_S, **options)

    def least_of(self, tasks: Mapping[Any, tuple[int, Make]]) -> dict[Any, float]:
        """As `least_us`, for numbers of ranks with what is made, by name."""
        made = {name: (world, cache(make)) for name, (world, make) in tasks.items()}
        least = dict.fromkeys(tasks, math.inf)
        sweeps = [*made.items()] * SWEEPS
        for name, (world, make) in tqdm(sweeps, "ranks", leave=False, disable=not self.shown):
            least[name] = min(least[name], self.least_us(world, make))
        return least

    def least_us(self, world: int, make: Make) -> float:
        """The least microseconds of what is made; the same on all ranks."""
        run = make() if self.rank < world else None
        first = self._slowest_of(world, run, 2)
        return self._slowest_of(world, run, max(ROUNDS, math.ceil(WARM_US / max(first, 1.0))))

    def _slowest_of(self, world: int, run: Callable[[], object] | None, rounds: int) -> float:
        """The microseconds of the best of so many rounds, each of which ends with its slowest rank;
        None: only wait."""
        times = torch.zeros(rounds, dtype=torch.float64)
        if run is not None:
            times += torch.tensor([self._once(world, run) for _ in range(rounds)])
        dist.all_reduce(times, dist.ReduceOp.MAX)
        return float(times.min())

    def _once(self, world: int, run: Callable[[], object]) -> float:
        dist.barrier(self.groups[world])
        start = self.clock()
        run()
        return 1e6 * (self.clock() - start)

    def calling(
        self, world: int, network: Expr, options: PlanOptions, dtype: str = "float32", **ranks: Any
    ) -> Make:
        """What compiles such a network for so many ranks, and gives a call of it."""

        def make() -> Callable[[], object]:
            over = self.ranks(world, **ranks)
            module = compile_network(network, plan=options, dtype=dtype, process_group=over)
            return torch.no_grad()(partial(module, *numbers_for(network, dtype)))

        return make


def numbers_for(network: Expr, dtype: str) -> list[torch.Tensor]:
    """Tensors for the inputs, such that products neither vanish nor overflow."""
    generator = torch.Generator().manual_seed(0)
    inputs = [leaf for leaf in network.leaves if leaf.kind == "input"]
    shapes = [[evaluate(size, {}) for size in leaf.shape] for leaf in inputs]
    return [
        torch.randn(shape, generator=generator, dtype=getattr(torch, dtype)).div_(
            max(math.prod(shape), 1) ** 0.25
        )
        for shape in shapes
    ]


class _Measuring:
    """What every rank does."""

    def __init__(self, machine: Machine, watch: Stopwatch) -> None:
        self.watch = watch
        self.base = replace(as_cluster(machine), slice_us=0.0, slowdown=())
        self.options = PlanOptions()  # as `simulate` plans

    def cluster(self) -> Cluster:
        cores, worlds = self.base.node.ranks, [*self.watch.groups]
        times = self.watch.least_of(self._tasks())
        for name in times.keys() - {"slices"}:
            kind, world, *_ = name
            if kind != "work":
                times[name] = max(times[name] - times["work", world], 1.0)
        links = {world: _link(world, times, self.base.rates) for world in worlds if world > 1}
        within = next((links[w] for w in links if w <= cores), self.base.node.within)
        between = next((links[w] for w in links if w > cores), within)
        found = replace(
            self.base,
            node=Node(cores, None, within, between),
            slice_us=self._slice_us(times["slices"]),
            calls=tuple((world, times["call", world]) for world in worlds),
        )
        fitted = [(world, *fit(taken)) for world, taken in self._taken(found).items()]
        return replace(
            found,
            slowdown=tuple((world, own) for world, own, _ in fitted),
            far=tuple((world, far) for world, _, far in fitted),
        )

    def _tasks(self) -> dict[Any, tuple[int, Make]]:
        """All but the networks. Ranks have worked before they call or send: those that do nothing
        else are twice as fast at it, as they come at the same time and no thread is asleep."""
        i, j, k = indices("i j k", size=2)
        empty = given("A", i, j) @ given("B", j, k)
        tiny = self.watch.calling(1, _tiny(), self.options, slices=_TINY)
        tasks: dict[Any, tuple[int, Make]] = {"slices": (1, tiny)}
        for world in self.watch.groups:
            tasks["work", world] = world, _worker
            tasks["call", world] = world, _after(self.watch.calling(world, empty, self.options))
            for count in (_SMALL, _LARGE, _BULK) if world > 1 else ():
                tasks["sum", world, count] = world, self._summing(world, count)
            for count in (_LARGE, _BULK) if world > 1 else ():
                tasks["gather", world, count] = world, self._gathering(world, count)
        return tasks

    def _summing(self, world: int, count: int) -> Make:
        """A sum of so many numbers between ranks."""
        group = self.watch.groups[world]
        return _after(lambda: partial(team_of(group, LOST_S).add_up, [torch.zeros(count)]))

    def _gathering(self, world: int, count: int) -> Make:
        """A result whose parts ranks send each other, so many numbers to each."""
        group = self.watch.groups[world]
        part = torch.zeros(_gathered(count, world))
        return _after(lambda: partial(team_of(group, LOST_S).gather, part))

    def _slice_us(self, measured: float) -> float:
        """What a slice takes beside its steps."""
        module = compile_network(
            _tiny(), plan=self.options, process_group=self.watch.ranks(1, slices=_TINY)
        )
        module(*numbers_for(_tiny(), "float32"))
        work = sum(stage_us(stage, 1, self.base) for stage in module.stages())
        return max(measured - work, 0.0) / _TINY

    def _taken(self, cluster: Cluster) -> dict[int, list[Taken]]:
        """What networks took and what is predicted of them, by the number of ranks."""
        known = dict(enumerate(samples()))

        def calling(world: int, sample: Sample) -> Make:
            options = PlanOptions(memory_limit=sample.memory_limit)
            return self.watch.calling(world, sample.network, options, sample.dtype, machine=cluster)

        tasks = {
            (world, k): (world, calling(world, sample))
            for world in self.watch.groups
            for k, sample in known.items()
        }
        times = self.watch.least_of(tasks)
        return {
            world: [_taken(sample, cluster, world, times[world, k]) for k, sample in known.items()]
            for world in self.watch.groups
        }


def _worker() -> Callable[[], object]:
    """Some work of a rank's own."""
    size, times = _WORK
    left, right = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty(size, size)
    return lambda: [torch.mm(left, right, out=out) for _ in range(times)]


def _after(make: Make) -> Make:
    """Something that is done after some work."""

    def both() -> Callable[[], object]:
        work, run = _worker(), make()
        return lambda: (work(), run())

    return both


@dataclass(frozen=True, slots=True)
class Taken:
    """Microseconds that a network took, with what is predicted of its steps, of what ranks send
    each other, and the bytes of arrays beyond FAR_BYTES."""

    measured_us: float
    own_us: float
    sending_us: float
    far_bytes: float

    def off(self, factor: float, far_us: float) -> float:
        """How far the prediction is off, as a logarithm."""
        predicted = factor * self.own_us + far_us * self.far_bytes + self.sending_us
        return abs(math.log(predicted / self.measured_us))


def _taken(sample: Sample, cluster: Cluster, world: int, measured_us: float) -> Taken:
    limit, dtype = sample.memory_limit, sample.dtype
    found = simulate(sample.network, cluster, world, dtype=dtype, memory_limit=limit)
    own = found.common_us + found.slices_us
    return Taken(measured_us, own, found.sending_us, found.far_bytes)


def fit(taken: Sequence[Taken]) -> tuple[float, float]:
    """How many times as long as predicted ranks' own steps take, and the microseconds besides for
    each byte of large arrays.

    Those by which the logarithms of the ratios add up to least: one network that is far off moves
    nothing. They make one of the networks exact, or two.
    """
    own = [max(one.measured_us - one.sending_us, 0.1 * one.own_us) for one in taken]
    found = [(us / one.own_us, 0.0) for us, one in zip(own, taken, strict=True)]
    for (u, a), (v, b) in combinations(zip(own, taken, strict=True), 2):
        # u = factor * a.own_us + far * a.far_bytes, and the same of v and b
        area = a.own_us * b.far_bytes - b.own_us * a.far_bytes
        if area:
            factor = (u * b.far_bytes - v * a.far_bytes) / area
            far = (a.own_us * v - b.own_us * u) / area
            found += [(factor, far)] if factor > 0 and far >= 0 else []
    return min(found, key=lambda pair: sum(one.off(*pair) for one in taken))


def _link(world: int, times: Mapping[Any, float], rates: Rates) -> Link:
    """Latency and rates, of what sums between ranks took, and results that all of them get."""
    small = times["sum", world, _SMALL]
    latency = small / (2 * math.ceil(math.log2(world)))
    sent = 2.0 * (world - 1) / world * 4
    large, bulk = (
        sent * count / max(times["sum", world, count] - small, 1.0) for count in (_LARGE, _BULK)
    )
    exchanges = []
    for count in (_LARGE, _BULK):
        part = 4 * _gathered(count, world)
        beside = math.ceil(math.log2(world)) * latency + rates.fresh_us(world * part)
        taken = max(times["gather", world, count] - beside, 0.1 * times["gather", world, count])
        exchanges.append((world - 1) * part / taken)
    return Link(latency, large, min(bulk, large), exchanges[0], min(exchanges))


def _gathered(count: int, world: int) -> int:
    """The numbers of each rank where all of them get so many from the others."""
    return max(count // (world - 1), 1)


def _tiny() -> Expr:
    """A contraction of next to no work."""
    (k,) = indices("k", k=_TINY)
    return contract(given("A", k), given("B", k), out=())


def _figures(cluster: Cluster) -> list[float]:
    """The measured figures, so that all ranks have those of the first."""
    node = cluster.node
    pairs = (*cluster.slowdown, *cluster.far, *cluster.calls)
    links = (figure or 0.0 for link in (node.within, node.between) for figure in astuple(link))
    return [*links, cluster.slice_us, *(figure for _, figure in pairs)]


def _of_figures(like: Cluster, figures: list[float]) -> Cluster:
    left = iter(figures)

    def link() -> Link:
        latency, large, *others = islice(left, len(fields(Link)))
        return Link(latency, large, *(rate or None for rate in others))

    worlds = [world for world, _ in like.slowdown]
    node = replace(like.node, within=link(), between=link())
    slice_us = next(left)
    slowdown, far, calls = (
        tuple(zip(worlds, islice(left, len(worlds)), strict=True)) for _ in range(3)
    )
    return replace(like, node=node, slice_us=slice_us, slowdown=slowdown, far=far, calls=calls)
