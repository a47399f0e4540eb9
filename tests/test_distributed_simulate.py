"""Predictions for worlds that are not here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import tncompiler as tnc
from examples import predictions
from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.link import LOCAL, Cluster, Link, Node, as_cluster
from tncompiler.distributed.planning import RankPlanner
from tncompiler.ir.errors import ArgumentError, PlanError
from tncompiler.planning.fit import UNLIMITED
from tncompiler.planning.machine import load_machine
from tncompiler.planning.options import PlanOptions


def chain(size: int = 512) -> Any:
    i, k, j = (tnc.Index(name, size) for name in "ikj")
    return tnc.contract(tnc.input("A", i, k), tnc.input("B", k, j), out=(i, j))


def test_one_rank_takes_what_the_plan_is_predicted_to_take() -> None:
    found = tnc.simulate(chain())
    assert (found.world, found.slices, found.sent_bytes, found.sending_us) == (1, 1, 0, 0.0)
    assert found.time_us == found.alone_us > 0
    assert found.efficiency == 1.0
    assert found.held_bytes == 2 * 4 * 512**2
    assert found.peak_bytes == 4 * 512**2


def test_more_ranks_take_less_and_send_more() -> None:
    size = 16_384
    found = [tnc.simulate(chain(size), "8xH100", world) for world in (1, 2, 4, 8, 16)]
    times = [one.slices_us + one.common_us for one in found]
    assert times == sorted(times, reverse=True)
    assert found[0].sent_bytes == 0
    assert [one.sent_bytes for one in found] == [  # parts of the result, to all others
        4 * size**2 * (one.world - 1) // one.world for one in found
    ]
    within, between = found[3].sending_us, found[4].sending_us
    assert between > 5 * within  # 16 ranks of 8 to a node: over the network


def test_a_plan_an_expression_and_a_module_are_predicted_alike() -> None:
    expr = chain()
    plan = tnc.plan(expr)
    module = tnc.compile(expr)
    found = [tnc.simulate(one, "8xA100", 4) for one in (plan, expr, module)]
    assert len({(one.time_us, one.peak_bytes, one.sent_bytes) for one in found}) == 1


def test_free_sizes_are_given_or_count_as_128() -> None:
    b, i, j = tnc.Index("b"), tnc.Index("i", 64), tnc.Index("j", 64)
    y = tnc.contract(tnc.input("x", b, i), tnc.param("G", i, j), out=(b, j))
    times = [tnc.simulate(y, sizes=sizes).time_us for sizes in ({"b": 128}, {}, {"b": 4096})]
    assert times[0] == times[1] < times[2]
    step = tnc.simulate(y, sizes={"b": 4096}, step=True)
    assert step.alone_us > times[2]


def test_a_limit_of_memory_makes_slices() -> None:
    j = tnc.Index("j", 512)
    rows = chain().sum(j)
    squares = tnc.contract(chain(), chain(), out=())
    found = tnc.simulate(squares, world=2, memory_limit="600kB")
    assert found.slices >= 2
    assert found.peak_bytes <= 600_000
    assert tnc.simulate(rows, memory_limit="600kB").slices == 1
    with pytest.raises(PlanError, match="memory_limit 600,000 B cannot be kept"):
        tnc.simulate(chain(), memory_limit="600kB")
    with pytest.raises(PlanError, match="inputs and parameters take"):
        tnc.simulate(chain(10**6), "8xH100", 8)
    assert tnc.simulate(chain(), "8xH100").fits is True
    assert tnc.simulate(chain()).fits is None


def test_a_prediction_prints_as_one() -> None:
    text = str(tnc.simulate(chain(16_384), "8xH100", 64))
    assert text.startswith("predicted, not measured: 64 ranks of 8xh100")
    assert "sent by the busiest rank" in text and "fits" in text


def test_a_million_slices() -> None:
    """A cycle of three matrices for each of 64 samples, in less memory than two rows take."""
    n, a, b, c = (
        tnc.Index(name, size) for name, size in zip("nabc", (64, 128, 128, 128), strict=True)
    )
    pairs = zip("ABC", ((a, b), (b, c), (c, a)), strict=True)
    expr = tnc.contract(*(tnc.input(name, n, *own) for name, own in pairs), out=())
    found = tnc.simulate(expr, "8xH100", 1024, memory_limit=1_000)
    assert found.slices >= 10**6
    assert found.peak_bytes <= 1_000
    assert found.slices_us < found.alone_us / 1000


def layer(rows: int) -> Any:
    """x(b, i) G(i, o), whose weight is large."""
    b, i, o = tnc.indices("b i o", b=rows, i=8192, o=8192)
    return tnc.contract(tnc.input("x", b, i), tnc.param("G", i, o), out=(b, o))


def test_an_index_that_is_cut_is_predicted_with_what_it_sends() -> None:
    """By an output index parts of the result are gathered, by a contracted one sums go round."""
    parts, sums = (tnc.simulate(layer(4096), "8xH100", 8, index=index) for index in "oi")
    result = 4 * 4096 * 8192
    assert parts.sent_bytes == result * 7 // 8
    assert sums.sent_bytes == 2 * result * 7 // 8
    assert parts.held_bytes == 4 * 8192 * (4096 + 1024)
    assert parts.time_us < tnc.simulate(layer(4096), "8xH100", 1).time_us / 4


def test_a_block_of_a_large_model_is_predicted() -> None:
    one = predictions.block(1)
    assert 68 < predictions.LAYERS * one.dense / 1e9 < 69
    assert one.parameters < one.dense / 9
    found = tnc.simulate(one.expr, "8xH100", 8, index="g", dtype="bfloat16")
    assert "predicted, not measured: 8 ranks" in str(found)
    inputs = predictions.TOKENS * 64 * 128
    assert 2 * inputs < found.held_bytes < 2 * (inputs + one.parameters)
    assert found.efficiency > 0.5


def test_an_order_that_sends_less_is_taken() -> None:
    """Orders are compared with what ranks send: over a slow link the one that is fastest alone is
    not; over a fast one no other is looked at."""
    base = as_cluster(load_machine("reference"))
    ways = {}
    for rate in (1.0, 1e9):
        link = Link(0.0, rate)
        cluster = replace(base, node=Node(2, None, link, link), slowdown=((2, 1.0),))
        planner = planner_of(cluster)
        orders = planner.orders(UNLIMITED)
        found = [way for order in orders for way in planner._ways(order, UNLIMITED)]
        assert len(found) > 1
        ways[rate] = found, planner.planned()
    slow, fast = ways.values()
    assert fast[1] == fast[0][0].plan
    assert slow[1] == min(slow[0], key=lambda way: way.time_us).plan != slow[0][0].plan


def planner_of(cluster: Cluster) -> RankPlanner:
    """A contraction that two ranks share."""
    a, b, c, d, e = tnc.indices("a b c d e", a=256, b=256, c=16, d=32, e=8)
    tensors = zip("ABCD", ((b, a, d), (a, e), (c, d), (d, e, b)), strict=True)
    expr = tnc.contract(*(tnc.input(name, *own) for name, own in tensors), out=(b, c))
    compilation = Compilation(expr, None, {}, PlanOptions())
    call = Call(compilation.default_dtypes("float32"), {}, {})
    return RankPlanner(compilation, call, (), tnc.Ranks(machine=cluster, slices=2), 2)


# Machines ---------------------------------------------------------------------------------------


def test_clusters_by_name() -> None:
    cluster = as_cluster("8xH100")
    assert cluster.rates == load_machine("h100").planning
    assert cluster.link(8).bytes_per_us > cluster.link(9).bytes_per_us
    assert cluster.turns(10_000) == 1.0
    assert as_cluster("h100") == cluster == as_cluster(cluster)
    assert as_cluster("4xA100").node.ranks == 4


def test_processes_of_this_computer_take_turns() -> None:
    here = as_cluster(load_machine("reference"))
    cores = here.node.ranks
    assert here.link(4) == LOCAL
    assert here.turns(cores) == 1.0
    assert here.turns(2 * cores) == 2.0


def test_a_cluster_of_ones_own() -> None:
    rates = load_machine("h100").planning
    slow = Cluster("slow", rates, Node(1, None, Link(1e3, 1.0), Link(1e3, 1.0)))
    quick = replace(slow, node=Node(1, None, Link(1.0, 1e6), Link(1.0, 1e6)))
    size = 16_384
    times = [tnc.simulate(chain(size), one, 8).time_us for one in (slow, quick)]
    assert times[0] > times[1]


@pytest.mark.parametrize("name", ["8xV9", "x", "0xH100", 3, "H100x8"])
def test_unknown_machines_are_refused(name: Any) -> None:
    with pytest.raises(PlanError, match="there is no machine"):
        tnc.simulate(chain(), name)


@pytest.mark.parametrize("world", [0, -1, 1.5, True, "2"])
def test_worlds_are_numbers_of_ranks(world: Any) -> None:
    with pytest.raises(ArgumentError, match="world is"):
        tnc.simulate(chain(), world=world)
    with pytest.raises(ArgumentError, match="plan is a"):
        tnc.simulate("ij,jk", world=2)
