"""Plans for ranks of one machine: which backend runs the slices, and caches that ranks share."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import tncompiler as tnc
from tests.ranks import World
from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.cuts import held_by_slice, ranks_us
from tncompiler.distributed.link import Cluster, as_cluster, shared_cache_bytes
from tncompiler.distributed.planning import RankPlanner, backends_on_cpu
from tncompiler.distributed.rank_plan import RankPlan
from tncompiler.distributed.stages import Slices, stages_of
from tncompiler.planning.machine import load_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.rates import Library

CACHE = 2**23


def computer(cache_bytes: int | None, ranks: int = 2) -> Cluster:
    """The reference machine with so many cores that share a cache, or none; slices cost what their
    steps do."""
    here = as_cluster(load_machine("reference"))
    node, slowdown = replace(here.node, ranks=ranks), ((ranks, 1.0),)
    return replace(here, node=node, slowdown=slowdown, slice_us=0.0, cache_bytes=cache_bytes)


def planner_of(cluster: Cluster, world: int = 2, limit: str | None = "8MiB") -> RankPlanner:
    """A cycle of matrices, two of which make one of 16 MiB; it may be cut into blocks."""
    a, b, c = tnc.indices("a b c", a=2048, b=128, c=2048)
    pairs = zip("ABC", ((a, b), (b, c), (c, a)), strict=True)
    expr = tnc.contract(*(tnc.input(name, *own) for name, own in pairs), out=())
    compilation = Compilation(
        expr, None, {}, PlanOptions(memory_limit=limit, path=((0, 1), (0, 1)))
    )
    call = Call(compilation.default_dtypes("float32"), {}, {})
    backends = backends_on_cpu(call.dtypes)
    return RankPlanner(compilation, call, (), tnc.Ranks(machine=cluster), world, backends)


# Caches -----------------------------------------------------------------------------------------


def test_ranks_crowd_only_a_cache_that_they_share() -> None:
    shared, own = computer(CACHE), computer(None)
    assert shared.crowding(2, CACHE / 4) == 1.0
    assert 1.0 < shared.crowding(2, CACHE / 2.5) < shared.crowding(2, CACHE)
    assert shared.crowding(2, CACHE) == shared.crowding(4, CACHE)  # two of the four take turns
    assert shared.crowding(1, 9 * CACHE) == own.crowding(2, 9 * CACHE) == 1.0
    assert own.cache_share(2) == math.inf
    assert as_cluster("8xH100").crowding(8, 1e12) == 1.0


def describe(folder: Path, size: str, cores: str) -> None:
    folder.mkdir()
    (folder / "size").write_text(f"{size}\n")
    (folder / "shared_cpu_list").write_text(f"{cores}\n")


def test_the_shared_cache_is_the_largest_that_several_cores_have(tmp_path: Path) -> None:
    assert shared_cache_bytes(tmp_path / "absent") is None
    describe(tmp_path / "index0", "48K", "0")
    assert shared_cache_bytes(tmp_path) is None
    describe(tmp_path / "index2", "1024K", "0,64")
    describe(tmp_path / "index3", "32768K", "0-7,64-71")
    describe(tmp_path / "index4", "unknown", "0-7")
    assert shared_cache_bytes(tmp_path) == 32 * 2**20


def peaks(planner: RankPlanner) -> tuple[int, int, RankPlan]:
    """The memory of a rank, the most that a slice holds, and the plan."""
    programs = planner.made(planner.planned())
    nests = [stage for stage in stages_of(programs.forward) if isinstance(stage, Slices)]
    return programs.peak, max(map(held_by_slice, nests)), programs.plan


def test_slices_leave_others_their_share_of_a_cache() -> None:
    """By predicted time; a rank alone, and ranks with caches of their own, go up to the limit."""
    crowded, held, plan = peaks(planner_of(computer(CACHE)))
    whole, roomy, usual = peaks(planner_of(computer(None)))
    assert held <= CACHE / 2 < roomy
    assert crowded < whole <= CACHE
    assert plan != usual
    assert peaks(planner_of(computer(CACHE), world=1))[2] == peaks(planner_of(computer(None), 1))[2]


def test_smaller_slices_are_taken_where_they_are_predicted_to_be_faster() -> None:
    cluster = computer(CACHE)
    times = []
    for given in (cluster, computer(None)):
        planner = planner_of(given)
        plan = planner.planned()
        looped = planner.made(plan).forward
        times.append(ranks_us(looped, 2, cluster.on(plan.backend)))
    assert times[0] < times[1]


@pytest.mark.parametrize(("cache", "limits"), [(CACHE, [CACHE, CACHE // 2, CACHE // 4]),
                                               (2 * CACHE, [CACHE])])  # fmt: skip
def test_an_order_is_cut_further_before_others_are_looked_for(
    cache: int, limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache has room for smaller blocks of one order, that is enough."""
    asked: list[int] = []
    orders = RankPlanner.orders

    def seen(planner: RankPlanner, limit: int) -> Any:
        asked.append(limit)
        return orders(planner, limit)

    monkeypatch.setattr(RankPlanner, "orders", seen)
    plan = planner_of(computer(cache)).planned()
    assert asked == limits
    assert plan.forward != planner_of(computer(None)).planned().forward


def test_without_a_limit_of_memory_the_cache_asks_for_nothing() -> None:
    plans = [planner_of(computer(size), limit=None).planned() for size in (2**16, None)]
    assert plans[0] == plans[1]


# Backends ---------------------------------------------------------------------------------------


def test_what_may_run_slices() -> None:
    assert backends_on_cpu(("float32", "complex64")) == ("torch", "numpy")
    assert backends_on_cpu(("bfloat16", "float32")) == ("torch",)
    assert backends_on_cpu(("uint16",)) == ("numpy",)


def slowed(rates: Any, times: float) -> Library:
    """Rates of a library that is so many times as slow."""
    products = {name: tuple(times * us for us in all_) for name, all_ in rates.products.items()}
    passes, gathers, transposes = (
        tuple(rate / times for rate in table)
        for table in (rates.passes, rates.gathers, rates.transposes)
    )
    return replace(rates, products=products, passes=passes, gathers=gathers, transposes=transposes)


@pytest.mark.parametrize(("slow", "expected"), [("torch", "numpy"), ("numpy", "torch")])
def test_the_faster_backend_runs_the_slices(slow: str, expected: str) -> None:
    here = computer(None)
    libraries = {**here.libraries, slow: slowed(here.libraries[slow], 10.0)}
    plan = planner_of(replace(here, libraries=libraries)).planned()
    assert plan.backend == expected
    assert RankPlan.from_json(plan.to_json()) == plan


def run_backends() -> tuple[list[str], list[bytes]]:
    """The backends that calls and steps took on this rank, where only rank 0 finds NumPy slow."""
    here = computer(None)
    slow = "numpy" if dist.get_rank() == 0 else "torch"
    libraries = {**here.libraries, slow: slowed(here.libraries[slow], 100.0)}
    i, j, k = tnc.indices("i j k", size=24)
    expr = tnc.contract(tnc.input("A", i, k), tnc.input("B", k, j), out=(i, j))
    ranks = tnc.Ranks(dist.group.WORLD, slices=4, machine=replace(here, libraries=libraries))
    module = tnc.compile(expr, process_group=ranks, dtype="float64")
    a, b = torch.arange(2 * 24 * 24, dtype=torch.float64).reshape(2, 24, 24).sin()
    a.requires_grad_()
    with torch.no_grad():
        called = module(a, b)
    module(a, b).square().sum().backward()
    assert a.grad is not None
    backends = [spec.backend for spec in module._specialisations.values()]
    return backends, [called.numpy().tobytes(), a.grad.numpy().tobytes()]


def test_all_ranks_take_the_backend_that_rank_0_chose(two: World) -> None:
    first, second = two.call(run_backends)
    assert first == second
    assert first[0] == ["torch", "torch"]
