"""What ranks measure of themselves, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import tncompiler as tnc
from benchmarks import simulate as benchmark
from tests.ranks import World
from tncompiler.distributed import calibrate
from tncompiler.distributed.calibrate import Taken, calibrate_ranks, fit
from tncompiler.distributed.link import BULK, MESSAGE, Cluster, Link, as_cluster
from tncompiler.distributed.samples import Sample, samples
from tncompiler.ir.errors import ArgumentError
from tncompiler.planning.machine import load_machine


def small() -> Iterator[Sample]:
    i, j, k = tnc.indices("i j k", size=64)
    yield Sample(tnc.contract(tnc.input("A", i, j), tnc.input("B", j, k), out=(i, k)))


def measured() -> tuple[Cluster, float]:
    """The cluster by quick measurements, and what is predicted of a network on it."""
    with pytest.MonkeyPatch.context() as patch:
        quick: dict[str, Any] = {"ROUNDS": 2, "SWEEPS": 1, "_LARGE": 2**12, "_BULK": 2**14}
        quick |= {"_TINY": 8, "WARM_US": 1.0, "samples": small}
        for name, value in quick.items():
            patch.setattr(calibrate, name, value)
        cluster = calibrate_ranks(load_machine("reference"))
    return cluster, tnc.simulate(next(small()).network, cluster, 4).time_us


def test_all_ranks_have_one_cluster(four: World) -> None:
    answers = four.call(measured)
    assert all(answer == answers[0] for answer in answers)
    cluster, time_us = answers[0]
    assert [world for world, _ in cluster.slowdown] == [1, 2, 4]
    assert [world for world, _ in cluster.far] == [1, 2, 4]
    assert [world for world, _ in cluster.calls] == [1, 2, 4]
    assert all(figure >= 0 for _, figure in cluster.far)
    assert all(figure > 0 for _, figure in (*cluster.slowdown, *cluster.calls))
    assert cluster.node.within.latency_us > 0 and cluster.node.between.bytes_per_us > 0
    bulk = cluster.node.within.bulk_bytes_per_us
    assert bulk is not None and 0 < bulk <= cluster.node.within.bytes_per_us
    assert cluster.node.between.exchange_rate(1.0) >= cluster.node.between.exchange_rate(BULK) > 0
    assert cluster.rates == as_cluster("reference").rates
    assert time_us > dict(cluster.calls)[4]


def test_there_must_be_ranks() -> None:
    with pytest.raises(ArgumentError, match="no ranks to measure"):
        calibrate_ranks()


def test_what_was_measured_is_predicted_by() -> None:
    """Between numbers of ranks figures are interpolated, beyond them ranks take turns."""
    base = as_cluster("reference")
    cluster = replace(base, slowdown=((1, 1.1), (2, 1.3), (4, 2.5)), calls=((1, 20.0), (4, 320.0)))
    assert [cluster.turns(world) for world in (1, 2, 4)] == [1.1, 1.3, 2.5]
    assert cluster.turns(3) == pytest.approx(1.9)
    assert cluster.turns(8) == pytest.approx(5.0)
    assert [cluster.call_us(world) for world in (1, 4)] == [20.0, 320.0]
    assert cluster.call_us(16) == pytest.approx(640.0)
    network = next(small()).network
    found, plain = (tnc.simulate(network, one, 1) for one in (cluster, base))
    assert found.time_us == pytest.approx(1.1 * plain.time_us + 20.0)
    assert plain.far_bytes == 0


def test_arrays_beyond_caches_take_ranks_longer() -> None:
    """Each byte that steps read or write of them, as ranks share the way to memory."""
    far = ((1, 1e-5), (2, 3e-5))
    cluster = replace(as_cluster("reference"), slowdown=((1, 1.0), (2, 1.0)), far=far)
    i, j, k = tnc.indices("i j k", i=2**16, j=16, k=8)  # 4 MiB by 512 B gives 2 MiB
    network = tnc.contract(tnc.input("A", i, j), tnc.input("B", j, k), out=(i, k))
    plain, found = (tnc.simulate(network, one, 1) for one in (replace(cluster, far=()), cluster))
    assert plain.far_bytes == found.far_bytes == 2**22
    assert found.time_us - plain.time_us == pytest.approx(2**22 * 1e-5)
    assert cluster.far_us(2, 1.0) == 3e-5
    assert cluster.far_us(4, 1.0) == pytest.approx(6e-5)


def test_what_is_fitted_is_where_most_networks_are() -> None:
    """1.2 times as long and 2 us a kB, but for two that are far off."""
    own, far, sending = [500.0, 2e3, 1e4, 3e4, 8e3, 4e3], [1e6, 0.0, 2e6, 1e6, 0.0, 0.0], 70.0
    taken = [1.2 * a + 2e-3 * b + sending for a, b in zip(own, far, strict=True)]
    taken[1] *= 5.0
    taken[4] /= 3.0
    found = fit([Taken(t, a, sending, b) for t, a, b in zip(taken, own, far, strict=True)])
    assert found == pytest.approx((1.2, 2e-3), rel=1e-9)


def test_without_large_arrays_one_factor_is_fitted() -> None:
    assert fit([Taken(f, 1.0, 0.0, 0.0) for f in (1.0, 1.3, 9.0)]) == (1.3, 0.0)


def test_messages_beyond_caches_are_slower() -> None:
    """sums of 64 MB between processes go at two thirds of the rate of 8 MB"""
    link = Link(0.0, 1_000.0, 500.0)
    rates = [link.rate(sent) for sent in (1.0, MESSAGE, (MESSAGE * BULK) ** 0.5, BULK, 4 * BULK)]
    assert rates == pytest.approx([1_000.0, 1_000.0, 750.0, 500.0, 500.0])
    assert link.sum_us(4 * BULK, 2) == pytest.approx(4 * BULK / 500.0)
    assert link.exchange_us(BULK, 4) == pytest.approx(BULK / 500.0)
    assert Link(0.0, 1_000.0).rate(4 * BULK) == 1_000.0
    apart = Link(0.0, 1_000.0, 500.0, 400.0, 200.0)
    assert apart.sum_us(4 * BULK, 2) == link.sum_us(4 * BULK, 2)
    assert [apart.exchange_us(size, 2) for size in (400.0, BULK)] == [1.0, BULK / 200.0]


def test_the_benchmark_says_which_pairs_hold() -> None:
    rows = [benchmark.Row("a", 2, 4, predicted, 10.0) for predicted in (7.4, 7.6, 12.4, 12.6)]
    assert [row.holds for row in rows] == [False, True, True, False]
    assert benchmark.summary(rows).startswith("2 of 4 held-out pairs within 25%")


def test_the_benchmark_measures_what_calibration_does_not_know() -> None:
    problems = list(benchmark.problems())
    assert len({problem.name for problem in problems}) == len(problems) >= 12
    known = {sample.network.to_json() for sample in samples()}
    assert known.isdisjoint(problem.network.to_json() for problem in problems)
