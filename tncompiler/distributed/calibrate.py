"""Measure what the ranks of this computer reach together, for `tnc.simulate` to predict by.

Every rank of a job calls it. Other programs only ever make things slower, so everything is done in
several sweeps, in several rounds each, and its least time counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, replace
from functools import cache, partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from tncompiler.api import compile as compile_network
from tncompiler.calibration import Clock, calibrate
from tncompiler.distributed.cuts import stage_us
from tncompiler.distributed.link import BULK, MESSAGE, Cluster, Link, Node, as_cluster
from tncompiler.distributed.options import Ranks
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

WORLDS = (1, 2, 4)
ROUNDS, SWEEPS = 5, 3  # what disturbs one sweep over everything rarely lasts for all
LOST_S = 60.0
_BULK = BULK // 4  # numbers of a message larger than caches
_LARGE = MESSAGE // 4  # of a large one
_SMALL = 2**10  # and of a small one, of which each rank of a ring still has its share
_TINY = 512  # slices of next to no work


def calibrate_ranks(machine: Machine | None = None, *, clock: Clock = time.perf_counter) -> Cluster:
    """The cluster that the ranks of this job are, all of one computer; half a minute.

    Every rank calls it, with torch.distributed initialised and as many threads as the work will
    have; up to 4 ranks are measured. ``machine``: what one rank reaches; by default `tnc.calibrate`
    measures it. ``clock``: seconds; the processor's, where others are at work. Give the result to
    `tnc.simulate` and `tnc.Ranks` as ``machine``. Raises: ArgumentError outside of a job.
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
    found = _Measuring(machine, Stopwatch(clock)).cluster()
    figures = torch.tensor(_figures(found), dtype=torch.float64)
    whole.share([figures])
    return _of_figures(found, figures.tolist())


def _alone(clock: Clock) -> str:
    """What one rank reaches, as JSON."""
    return calibrate(default=False, progress=False, clock=clock).to_json()


Make = Callable[[], Callable[[], object]]  # makes something to run


class Stopwatch:
    """Times what the first ranks of a job do together, while the others wait."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock, self.rank = clock, dist.get_rank()
        sizes = [world for world in WORLDS if world <= dist.get_world_size()]
        self.groups = {world: dist.new_group(range(world), backend="gloo") for world in sizes}

    def ranks(self, world: int, **options: Any) -> Ranks:
        return Ranks(self.groups[world] if world > 1 else None, lost_after_s=LOST_S, **options)

    def least_of(self, tasks: Mapping[Any, tuple[int, Make]]) -> dict[Any, float]:
        """As `least_us`, for numbers of ranks with what is made, by name."""
        made = {name: (world, cache(make)) for name, (world, make) in tasks.items()}
        least = dict.fromkeys(tasks, math.inf)
        for name, (world, make) in [*made.items()] * SWEEPS:
            least[name] = min(least[name], self.least_us(world, make))
        return least

    def least_us(self, world: int, make: Make) -> float:
        """The least microseconds of what is made, on the slowest rank; the same on all of them."""
        best = torch.zeros(1, dtype=torch.float64)
        if self.rank < world:
            run = make()
            run()
            best += min(self._once(world, run) for _ in range(ROUNDS))
        dist.all_reduce(best, dist.ReduceOp.MAX)
        return float(best)

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
        links = {world: _link(world, times) for world in worlds if world > 1}
        within = next((links[w] for w in links if w <= cores), self.base.node.within)
        between = next((links[w] for w in links if w > cores), within)
        found = replace(
            self.base,
            node=Node(cores, None, within, between),
            slice_us=self._slice_us(times["slices"]),
            calls=tuple((world, times["call", world]) for world in worlds),
        )
        return replace(found, slowdown=tuple(self._slowdown(found)))

    def _tasks(self) -> dict[Any, tuple[int, Make]]:
        """All but the networks."""
        i, j, k = indices("i j k", size=2)
        empty = given("A", i, j) @ given("B", j, k)
        tiny = self.watch.calling(1, _tiny(), self.options, slices=_TINY)
        tasks: dict[Any, tuple[int, Make]] = {"slices": (1, tiny)}
        for world in self.watch.groups:
            tasks["call", world] = world, self.watch.calling(world, empty, self.options)
            for count in (_SMALL, _LARGE, _BULK) if world > 1 else ():
                tasks["sum", world, count] = world, self._summing(world, count)
        return tasks

    def _summing(self, world: int, count: int) -> Make:
        """A sum of so many numbers between ranks."""
        group = self.watch.groups[world]
        return lambda: partial(team_of(group, LOST_S).add_up, [torch.zeros(count)])

    def _slice_us(self, measured: float) -> float:
        """What a slice takes beside its steps."""
        module = compile_network(
            _tiny(), plan=self.options, process_group=self.watch.ranks(1, slices=_TINY)
        )
        module(*numbers_for(_tiny(), "float32"))
        work = sum(stage_us(stage, 1, self.base) for stage in module.stages())
        return max(measured - work, 0.0) / _TINY

    def _slowdown(self, cluster: Cluster) -> Iterator[tuple[int, float]]:
        """Numbers of ranks, with how many times as long as predicted some networks take on them."""
        networks = dict(enumerate(_networks()))
        tasks = {
            (world, k): (world, self.watch.calling(world, network, self.options, machine=cluster))
            for world in self.watch.groups
            for k, network in networks.items()
        }
        times = self.watch.least_of(tasks)
        for world in self.watch.groups:
            factors = []
            for k, network in networks.items():
                found = simulate(network, cluster, world)
                work = found.common_us + found.slices_us
                own = max(times[world, k] - found.sending_us, 0.1 * work)
                factors.append(own / work)
            yield world, median(factors)  # one network may be far from what is predicted


def _link(world: int, times: Mapping[Any, float]) -> Link:
    """Latency and rates, of what sums between ranks took."""
    small = times["sum", world, _SMALL]
    latency = small / (2 * math.ceil(math.log2(world)))
    sent = 2.0 * (world - 1) / world * 4
    large, bulk = (
        sent * count / max(times["sum", world, count] - small, 1.0) for count in (_LARGE, _BULK)
    )
    return Link(latency, large, min(bulk, large))


def _tiny() -> Expr:
    """A contraction of next to no work."""
    (k,) = indices("k", k=_TINY)
    return contract(given("A", k), given("B", k), out=())


def _networks() -> Iterator[Expr]:
    """Contractions of some tens of milliseconds: large products, batches of them, small steps."""
    a, b, c = indices("a b c", size=1024)
    yield contract(given("A", a, b), given("B", b, c), given("C", c, a), out=())
    n, k, l, m = indices("n k l m", n=256, k=96, l=96, m=96)
    yield contract(given("A", n, k, l), given("B", n, l, m), given("C", n, m, k), out=())
    yield _lattice(4, 4, 24)
    x, p, q, r, s, t = indices("x p q r s t", x=4096, p=24, q=32, r=24, s=24, t=24)
    yield contract(given("X", x, p, q), given("G", p, r, s), given("H", s, q, t), out=(x, r, t))


def _lattice(rows: int, columns: int, bond: int) -> Expr:
    """A tensor at each site, joined to its neighbours."""

    def bonds(row: int, column: int) -> Iterator[str]:
        if column:
            yield f"h{row}{column}"
        if column + 1 < columns:
            yield f"h{row}{column + 1}"
        if row:
            yield f"v{row}{column}"
        if row + 1 < rows:
            yield f"v{row + 1}{column}"

    sites = [(row, column) for row in range(rows) for column in range(columns)]
    return contract(
        *(given(f"T{r}{c}", *indices(" ".join(bonds(r, c)), size=bond)) for r, c in sites), out=()
    )


def _figures(cluster: Cluster) -> list[float]:
    """The measured figures, so that all ranks have those of the first."""
    node = cluster.node
    pairs = (*cluster.slowdown, *cluster.calls)
    links = (figure or 0.0 for link in (node.within, node.between) for figure in astuple(link))
    return [*links, cluster.slice_us, *(figure for _, figure in pairs)]


def _of_figures(like: Cluster, figures: list[float]) -> Cluster:
    within, between = (Link(a, b, bulk or None) for a, b, bulk in (figures[:3], figures[3:6]))
    worlds, rest = [world for world, _ in like.slowdown], figures[7:]
    slowdown, calls = rest[: len(worlds)], rest[len(worlds) :]
    return replace(
        like,
        node=replace(like.node, within=within, between=between),
        slice_us=figures[6],
        slowdown=tuple(zip(worlds, slowdown, strict=True)),
        calls=tuple(zip(worlds, calls, strict=True)),
    )
