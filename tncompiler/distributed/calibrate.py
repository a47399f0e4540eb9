"""Measure what the ranks of this computer reach together, for `tnc.simulate` to predict by.

Every rank of a job calls it. Other programs only ever make things slower, so everything is done in
several rounds, and its least time counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from tncompiler.api import compile as compile_network
from tncompiler.distributed.cuts import stage_us
from tncompiler.distributed.link import Cluster, Link, Node, as_cluster
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.simulate import simulate
from tncompiler.distributed.team import team_of
from tncompiler.dsl import contract, indices
from tncompiler.dsl import input as given
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.calibrate import Clock, calibrate
from tncompiler.planning.machine import Machine
from tncompiler.planning.options import PlanOptions

WORLDS = (1, 2, 4)
ROUNDS = 9
LOST_S = 60.0
_LARGE = 2**21  # numbers of a large message
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


class Stopwatch:
    """Times what the first ranks of a job do together, while the others wait."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock, self.rank = clock, dist.get_rank()
        sizes = [world for world in WORLDS if world <= dist.get_world_size()]
        self.groups = {world: dist.new_group(range(world), backend="gloo") for world in sizes}

    def ranks(self, world: int, **options: Any) -> Ranks:
        return Ranks(self.groups[world] if world > 1 else None, lost_after_s=LOST_S, **options)

    def least_us(self, world: int, make: Callable[[], Callable[[], object]]) -> float:
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

    def call_us(
        self, world: int, network: Expr, options: PlanOptions, dtype: str = "float32", **ranks: Any
    ) -> float:
        """A call of a network of inputs over so many ranks."""
        return self.least_us(world, self.calling(world, network, options, dtype, **ranks))

    def calling(
        self, world: int, network: Expr, options: PlanOptions, dtype: str = "float32", **ranks: Any
    ) -> Callable[[], Callable[[], object]]:
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
        cores = self.base.node.ranks
        links = {world: self._link(world) for world in self.watch.groups if world > 1}
        within = next((links[w] for w in links if w <= cores), self.base.node.within)
        between = next((links[w] for w in links if w > cores), within)
        node = Node(cores, None, within, between)
        found = replace(self.base, node=node, slice_us=self._slice_us())
        worlds = [*self.watch.groups]
        found = replace(found, calls=tuple((w, self._call_us(w)) for w in worlds))
        return replace(found, slowdown=tuple((w, self._slowdown(w, found)) for w in worlds))

    def _link(self, world: int) -> Link:
        """Latency and rate of sums between ranks."""

        def sum_us(count: int) -> float:
            numbers = [torch.zeros(count)]
            group = self.watch.groups[world]
            return self.watch.least_us(
                world, lambda: partial(team_of(group, LOST_S).add_up, numbers)
            )

        small, large = sum_us(_SMALL), sum_us(_LARGE)
        latency = small / (2 * math.ceil(math.log2(world)))
        sent = 2.0 * (world - 1) / world * 4 * _LARGE
        return Link(latency, sent / max(large - small, 1.0))

    def _slice_us(self) -> float:
        """What a slice takes beside its steps."""
        (k,) = indices("k", k=_TINY)
        tiny = contract(given("A", k), given("B", k), out=())
        ranks = self.watch.ranks(1, slices=_TINY)
        module = compile_network(tiny, plan=self.options, process_group=ranks)
        numbers = numbers_for(tiny, "float32")
        measured = self.watch.least_us(1, lambda: lambda: module(*numbers))
        module(*numbers)
        work = sum(stage_us(stage, 1, self.base) for stage in module.stages())
        return max(measured - work, 0.0) / _TINY

    def _call_us(self, world: int) -> float:
        """A call of next to no work."""
        i, j, k = indices("i j k", size=2)
        return self.watch.call_us(world, given("A", i, j) @ given("B", j, k), self.options)

    def _slowdown(self, world: int, cluster: Cluster) -> float:
        """How many times as long as predicted some networks take on so many ranks."""
        logs = []
        for network in _networks():
            measured = self.watch.call_us(world, network, self.options, machine=cluster)
            found = simulate(network, cluster, world)
            work = found.common_us + found.slices_us
            logs.append(math.log(max(measured - found.sending_us, 0.1 * work) / work))
        return math.exp(sum(logs) / len(logs))


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
    links = (*astuple(node.within), *astuple(node.between))
    return [*links, cluster.slice_us, *(figure for _, figure in pairs)]


def _of_figures(like: Cluster, figures: list[float]) -> Cluster:
    within, between = Link(*figures[:2]), Link(*figures[2:4])
    worlds, rest = [world for world, _ in like.slowdown], figures[5:]
    slowdown, calls = rest[: len(worlds)], rest[len(worlds) :]
    return replace(
        like,
        node=replace(like.node, within=within, between=between),
        slice_us=figures[4],
        slowdown=tuple(zip(worlds, slowdown, strict=True)),
        calls=tuple(zip(worlds, calls, strict=True)),
    )
