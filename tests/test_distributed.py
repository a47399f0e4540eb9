"""Slices over ranks: results and gradients as one process has them, faults seen on every rank."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import tncompiler as tnc
from tests.networks import random_network
from tests.oracle import Runner, compare, compare_named, epsilon, expected_gradients
from tests.ranks import RankFailed, World
from tncompiler.distributed.team import Team, team_of
from tncompiler.ir.reference import evaluate_all

# Functions that run on every rank ---------------------------------------------------------------


class RankedRunner(Runner):
    """A network over the ranks of the world, cut into at least so many slices."""

    def __init__(self, case: Any, backend: str, slices: int, **options: Any) -> None:
        self.name, self.dtype = backend, case.dtype
        self.compiled = tnc.compile(
            case.outputs,
            sizes=dict(case.given),
            backend=backend,
            dtype=case.dtype,
            seed=0,
            process_group=tnc.Ranks(group=dist.group.WORLD, slices=slices, **options),
        )


def ranked_network(seed: int, slices: int) -> tuple[str, dict[str, float], int]:
    """A random network over ranks: a digest of its bits, error / bound, the most slices cut.

    Each network is compared with the reference on one rank; the others have the same bits.
    """
    case = random_network(seed)
    backend = ("torch", "numpy")[seed % 2]
    runner = RankedRunner(case, backend, slices, not_finite="ignore")
    arrays, cotangents, wrt = case.arrays, case.cotangents, case.wrt
    values = runner.forward(arrays)
    trained, found = runner.gradients(arrays, cotangents, wrt) if wrt else (values, {})
    bits = blake2b()
    for array in (*values, *trained, *found.values()):
        bits.update(np.ascontiguousarray(array).tobytes())
    worst = {}
    if seed % dist.get_world_size() == dist.get_rank():
        eps = epsilon(case.dtype)
        forward = evaluate_all(case.outputs, arrays, case.sizes, eps)
        worst["forward"] = compare("forward", case.outputs, values, forward, backend, seed)
        if wrt:
            backward = expected_gradients(
                case.outputs, arrays, cotangents, wrt, case.sizes, eps, seed
            )
            compare("training forward", case.outputs, trained, forward, backend, seed)
            worst["gradient"] = compare_named(
                "gradient", case.outputs, found, backward, backend, seed
            )
    return bits.hexdigest(), worst, runner.compiled.slices()


def ranked_networks(seeds: range, slices: int) -> list[tuple[str, dict[str, float], int]]:
    return [ranked_network(seed, slices) for seed in seeds]


# Results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [3, 5])
def test_random_networks_over_two_ranks(two: World, slices: int) -> None:
    check_networks(two, range(30 * slices, 30 * slices + 12), slices)


def test_random_networks_over_four_ranks(four: World) -> None:
    check_networks(four, range(300, 312), 6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_200_random_networks(size: int, two: World, four: World) -> None:
    """The issue's figure: 200 networks at world 1, 2 and 4 with uneven slices."""
    world = {1: None, 2: two, 4: four}[size] or World(1)
    check_networks(world, range(1000, 1200), 3 + size, timeout_s=1800.0)
    if size == 1:
        world.close()


def check_networks(world: World, seeds: range, slices: int, timeout_s: float = 300.0) -> None:
    answers = world.call(ranked_networks, seeds, slices, timeout_s=timeout_s)
    sliced = 0
    for seed, *ranks in zip(seeds, *answers, strict=True):
        assert len({bits for bits, _, _ in ranks}) == 1, f"ranks differ (seed {seed})"
        assert any(worst for _, worst, _ in ranks), f"nothing was compared (seed {seed})"
        sliced += ranks[0][2] > 1
    assert sliced > len(seeds) // 2, "most networks were not sliced at all"


# Slices of every number -------------------------------------------------------------------------


def product(k: int, **options: Any) -> Any:
    """A(i, k) B(k, j), cut along k."""
    i, j, inner = tnc.indices("i j k", i=3, j=4, k=k)
    y = tnc.contract(tnc.input("A", i, inner), tnc.input("B", inner, j), out=(i, j))
    options = {"group": dist.group.WORLD, "slices": 4, **options}
    return tnc.compile(y, dtype="float64", process_group=tnc.Ranks(**options))


def run_product(k: int, **options: Any) -> tuple[int, float, list[Any]]:
    """How many slices there are, the errors of all elements added up, and the bits of two calls."""
    rng = np.random.default_rng(k)
    a, b = (torch.tensor(rng.standard_normal(shape)) for shape in ((3, k), (k, 4)))
    a.requires_grad_()
    module = product(k, **options)
    results = []
    for _ in range(2):
        a.grad = None
        y = module(a, b)
        y.square().sum().backward()
        results.append((y.detach().numpy().tobytes(), a.grad.numpy().tobytes()))
    expected = a.detach() @ b
    error = (y.detach() - expected).abs().sum() + (a.grad - 2 * expected @ b.T).abs().sum()
    return module.slices(), float(error), results


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 64])
def test_more_ranks_than_slices_and_none_at_all(k: int, four: World) -> None:
    """Every size of the summed index, on more ranks than it has positions; twice the same bits."""
    answers = four.call(run_product, k)
    for count, error, (first, second) in answers:
        assert error < 1e-11
        assert count <= max(3 * 4 * max(k, 1), 1)
        assert first == second
    assert len({answer[2][0] for answer in answers}) == 1


def test_one_process_alone_needs_no_group() -> None:
    count, error, _ = run_product(40, group=None, slices=7)
    assert count >= 7
    assert error < 1e-12


def test_slices_that_do_not_pay_are_not_made(two: World) -> None:
    """Nobody asked for slices, and sending a small result takes longer than making it."""
    for count, error, _ in two.call(run_small):
        assert count == 1
        assert error < 1e-12


def run_small() -> tuple[int, float, list[Any]]:
    return run_product(5, slices=None)


def draw_parameters() -> list[bytes]:
    """Parameters of a module without a seed, and of a copy of it."""
    from copy import deepcopy

    torch.manual_seed(dist.get_rank())
    i, j = tnc.indices("i j", i=3, j=4)
    y = tnc.input("x", i) @ tnc.param("G", i, j)
    module = tnc.compile(y, process_group=dist.group.WORLD)
    copied = deepcopy(module)
    assert type(copied) is type(module)
    return [module.G.detach().numpy().tobytes(), copied.G.detach().numpy().tobytes()]


def test_ranks_begin_with_the_same_parameters(two: World) -> None:
    first, second = two.call(draw_parameters)
    assert first == second
    assert first[0] == first[1]


def compiled_by_torch() -> float:
    """torch looks inside: every rank computes everything."""
    module = product(6)
    a, b = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    tangent = torch.func.jvp(module, (a, b), (torch.ones_like(a), torch.zeros_like(b)))[1]
    return float((tangent - torch.ones_like(a) @ b).abs().max())


def test_functorch_looks_inside_a_ranked_module(two: World) -> None:
    assert max(two.call(compiled_by_torch)) < 1e-12


def sums_of_groups() -> list[float]:
    """Ranks are in more than one group, and not all in as many."""
    groups = [dist.new_group(range(size)) for size in (1, 2, 3)]
    mine = [group for size, group in enumerate(groups, 1) if dist.get_rank() < size]
    found = []
    for group in (*mine, dist.group.WORLD):
        team = team_of(group, 20.0)
        found.append(float(team.add_up([torch.ones(1)])[0]))
    return found


def test_groups_may_overlap(four: World) -> None:
    assert four.call(sums_of_groups) == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4]]


def parts_of_ranks(length: int) -> bool:
    """Parts of any size, order in memory and kind arrive where they belong."""
    team = team_of(dist.group.WORLD, 20.0)

    def part(rank: int) -> torch.Tensor:
        made = torch.arange(3.0 * length).reshape(length, 3).t() + 1000.0 * rank
        return torch.complex(made, -made).conj()

    found = team.gather(part(team.rank))
    wanted = torch.stack([part(rank) for rank in range(team.world)]).resolve_conj()
    return torch.equal(found, wanted)


@pytest.mark.parametrize("length", [5, 50_000])
def test_parts_of_any_size_are_gathered(four: World, length: int) -> None:
    assert four.call(parts_of_ranks, length) == [True] * 4


def reading_threads() -> list[bool]:
    """Whether each thread of gloo that a new team starts, and that reads, lets others go first."""
    before = {*os.listdir("/proc/self/task")}
    Team(dist.new_group(), 20.0)
    threads = [int(name) for name in {*os.listdir("/proc/self/task")} - before]
    names = {t: Path(f"/proc/self/task/{t}/comm").read_text() for t in threads}
    reading = [t for t, name in names.items() if name.startswith("gloo")]
    return [os.sched_getscheduler(t) == os.SCHED_BATCH for t in reading]


def test_threads_that_read_the_network_push_nobody_aside(two: World) -> None:
    """The group that torch makes keeps its threads as they are; the team's own does not."""
    for found in two.call(reading_threads):
        assert any(found)


# The helper can fail ----------------------------------------------------------------------------


def raise_on_one() -> int:
    if dist.get_rank() == 1:
        raise ValueError("as planned")
    return 7


def test_the_world_tells_which_rank_failed(two: World) -> None:
    with pytest.raises(RankFailed, match="rank 1: ") as caught:
        two.call(raise_on_one)
    assert caught.value.answers[0] == ("", 7)
    assert caught.value.answers[1][0] == "ValueError"
