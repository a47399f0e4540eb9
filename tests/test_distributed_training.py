"""Training over ranks: parameters cut along an index, DDP, FSDP2, checkpoints resharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import tncompiler as tnc
from tests.ranks import World
from tncompiler.binding import Call
from tncompiler.distributed.shard_planner import ShardPlanner
from tncompiler.ir.errors import GradientError

STEPS = 20
SIZES = dict(i1=3, i2=4, o1=5, o2=3, r1=4)


def layer(seed: int = 0, **options: Any) -> Any:
    """relu(x(b, i1, i2) G1(i1, o1, r1) G2(r1, i2, o2) + bias(o1, o2))."""
    b, i1, i2, o1, o2, r1 = tnc.indices("b i1 i2 o1 o2 r1", **SIZES)
    cores = tnc.param("G1", i1, o1, r1), tnc.param("G2", r1, i2, o2)
    y = tnc.contract(tnc.input("x", b, i1, i2), *cores, out=(b, o1, o2))
    y = tnc.relu(y + tnc.param("bias", o1, o2))
    return tnc.compile(y, dtype="float64", seed=seed, **options)


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return [(draw(8, 3, 4), draw(8, 5, 3)) for _ in range(steps)]


def train(module: nn.Module, part: slice = slice(None), steps: int = STEPS) -> list[Tensor]:
    """Losses of some steps with Adam, on a part of each batch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for x, target in batches(steps):
        optimizer.zero_grad()
        loss = (module(x[part]) - target[part]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def mesh_of_all() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (dist.get_world_size(),))


# Twenty steps -----------------------------------------------------------------------------------


def cut(index: str | None, backend: str) -> list[float]:
    return list(map(float, train(tnc.parallelize(layer(backend=backend), mesh_of_all(), index))))


def in_data_parallel(kind: str) -> list[float]:
    """Each rank has its part of the batch; the mean of their losses."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    module = layer()
    if kind == "fsdp2":
        fully_shard(module, mesh=mesh_of_all())
    wrapped = module if kind == "fsdp2" else DistributedDataParallel(module)
    world, rank = dist.get_world_size(), dist.get_rank()
    losses = torch.stack(train(wrapped, slice(8 // world * rank, 8 // world * (rank + 1))))
    dist.all_reduce(losses)
    return list(map(float, losses / world))


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return list(map(float, train(layer())))


@pytest.mark.parametrize("index", [None, "r1", "o1", "i2"])
def test_20_steps_with_an_index_cut(index: str | None, two: World, alone: list[float]) -> None:
    for losses in two.call(cut, index, "auto"):
        assert losses == pytest.approx(alone, rel=1e-9)


def test_20_steps_on_numpy(two: World, alone: list[float]) -> None:
    for losses in two.call(cut, "r1", "numpy"):
        assert losses == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("index", ["o2", "o1", "r1"])
def test_20_steps_on_more_ranks_than_an_index_has_blocks(
    index: str, four: World, alone: list[float]
) -> None:
    """o2 has 3 positions; o1 has 5, which make three blocks of two at most."""
    for losses in four.call(cut, index, "auto"):
        assert losses == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_20_steps_in_data_parallel(kind: str, two: World, alone: list[float]) -> None:
    for losses in two.call(in_data_parallel, kind):
        assert losses == pytest.approx(alone, rel=1e-9)


def ranked_steps() -> list[float]:
    return list(map(float, train(layer(process_group=tnc.Ranks(dist.group.WORLD, slices=3)))))


def test_20_steps_with_slices(two: World, alone: list[float]) -> None:
    for losses in two.call(ranked_steps):
        assert losses == pytest.approx(alone, rel=1e-9)


# What is cut, and what is sent -------------------------------------------------------------------


def report_of(index: str | None) -> tuple[Any, dict[str, tuple[int, ...]], float]:
    """The report, the shapes of this rank's parts, and the error of a call."""
    whole = layer()
    module = tnc.parallelize(whole, mesh_of_all(), index, sizes={"b": 8})
    shapes = {n: tuple(p.to_local().shape) for n, p in module.named_parameters()}
    x = batches(1)[0][0]
    with torch.no_grad():
        error = float((module(x) - whole(x)).abs().max())
    return module.report, shapes, error


def test_a_bond_is_cut_and_its_sums_are_sent(two: World) -> None:
    """Contracted index → partial sums: of the forward pass one, of the backward pass none."""
    for rank, (report, shapes, error) in enumerate(two.call(report_of, "r1")):
        assert shapes == {"G1": (3, 5, 2), "G2": (2, 4, 3), "bias": (5, 3)}, rank
        assert error < 1e-12
        assert report.parameters == ("G1", "G2")
        assert report.held_bytes == 8 * (3 * 5 * 2 + 2 * 4 * 3 + 15)
        assert report.whole_bytes == 8 * (60 + 48 + 15)
        forward = [m for m in report.messages if m.part == "forward"]
        assert [m.size_bytes for m in forward] == [8 * 3 * 4 * 5 * 3]  # the weight, made first
        assert "index r1 over 2 ranks: G1, G2 in parts" in str(report)
        assert "1,440 B" in str(report)


def test_an_output_index_is_cut_unevenly(two: World) -> None:
    """Output index → parts: each rank has its own rows of the parameters that carry it."""
    (first, second) = two.call(report_of, "o1")
    assert first[1] == {"G1": (3, 3, 4), "G2": (4, 4, 3), "bias": (3, 3)}
    assert second[1] == {"G1": (3, 2, 4), "G2": (4, 4, 3), "bias": (2, 3)}
    assert max(first[2], second[2]) < 1e-12


def test_the_fastest_index_is_taken(two: World) -> None:
    chosen = two.call(report_of, None)[0][0]
    others = [two.call(report_of, index)[0][0] for index in ("r1", "o1", "o2", "i1", "i2")]
    assert chosen.ranks_us == min(one.ranks_us for one in others)


def layer_of_many_rows(rows: int) -> Any:
    """x(b, i) G1(i, r) G2(r, o), which is cheapest from the left, and sends least made at once."""
    b, i, o, r = tnc.indices("b i o r", b=rows, i=48, o=2, r=40)
    cores = tnc.param("G1", i, r), tnc.param("G2", r, o)
    return tnc.compile(tnc.contract(tnc.input("x", b, i), *cores, out=(b, o)), dtype="float64")


def sent_in_orders() -> tuple[int, int, float]:
    """What the order that is chosen sends, the most that one of the others would, and the time."""
    module = layer_of_many_rows(16)
    call = Call(("float64",) * 4, {}, {})
    planner = ShardPlanner("r", module.compilation, call, (), tnc.Ranks(), 2)
    times = [planner.ranks_us(planner.made(planner._cut(plan))) for plan in planner.plans]
    return len(times), planner.report().sent_bytes, min(times) - planner.report().ranks_us


def test_of_several_orders_the_fastest_with_what_it_sends_is_taken() -> None:
    orders, sent, apart = sent_in_orders()
    assert orders >= 1
    assert sent > 0
    assert apart == 0.0


# Checkpoints ------------------------------------------------------------------------------------


def save_or_load(folder: str, index: str, saves: bool) -> list[float]:
    """Losses of some steps, from what is on disk if anything is; then what is on disk is new."""
    import torch.distributed.checkpoint as dcp

    module = tnc.parallelize(layer(seed=0 if saves else 7), mesh_of_all(), index)
    if not saves:
        state = module.state_dict()
        dcp.load(state, checkpoint_id=folder)
        module.load_state_dict(state)
    losses = train(module, steps=4)
    dcp.save(module.state_dict(), checkpoint_id=folder)
    return list(map(float, losses))


def test_a_checkpoint_goes_from_two_ranks_to_one_and_to_four(
    tmp_path: Path, two: World, four: World
) -> None:
    one, alone, folder = World(1), layer(), str(tmp_path)
    try:
        for world, saves in ((two, True), (one, False), (four, False)):
            expected = list(map(float, train(alone, steps=4)))
            for losses in world.call(save_or_load, folder, "r1", saves):
                assert losses == pytest.approx(expected, rel=1e-9)
    finally:
        one.close()


# Copies, resets, refusals -----------------------------------------------------------------------


def copies_and_resets() -> list[float]:
    from copy import deepcopy

    module = tnc.parallelize(layer(), mesh_of_all(), "r1")
    copied = deepcopy(module)
    x = batches(1)[0][0]
    first = float((module(x) - copied(x)).detach().abs().max())
    module.reset_parameters(torch.Generator().manual_seed(5))
    fresh = layer(seed=5)
    second = max(
        float((p.full_tensor() - fresh.get_parameter(n)).detach().abs().max())
        for n, p in module.named_parameters()
    )
    third = float((module(x) - fresh(x)).detach().abs().max())
    return [first, second, third]


def test_copies_and_resets_are_cut_alike(two: World) -> None:
    for errors in two.call(copies_and_resets):
        assert max(errors) < 1e-12


def refusals() -> list[str]:
    mesh, module, found = mesh_of_all(), layer(), []
    cases = [
        (nn.Linear(2, 2), mesh, None),
        (module, "mesh", None),
        (module, mesh, "nowhere"),
        (module, mesh, "b"),
    ]
    for case in cases:
        try:
            tnc.parallelize(*case)
        except tnc.TncError as error:
            found.append(type(error).__name__)
    sharded = tnc.parallelize(module, mesh, "r1")
    x = batches(1)[0][0].requires_grad_()
    try:
        torch.autograd.grad(sharded(x).square().sum(), x, create_graph=True)
    except GradientError as error:
        found.append(str(error).splitlines()[0])
    return found


def test_what_cannot_be_cut_is_refused(two: World) -> None:
    for found in two.call(refusals):
        assert found[:4] == ["ArgumentError", "ArgumentError", "UnknownIndex", "UnknownIndex"]
        assert "first derivatives only" in found[4]
