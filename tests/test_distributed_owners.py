"""Results that are joined along an output index: who owns what, and what ranks send for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import tncompiler as tnc
from tests.ranks import World
from tncompiler.distributed.owners import Owners, owners_of, owners_of_shard
from tncompiler.distributed.shards import Shard
from tncompiler.distributed.stages import Slices, stages_of
from tncompiler.distributed.team import Team
from tncompiler.distributed.traffic import traffic_of
from tncompiler.planning.slicing import Cut, apply_cuts

SIZES = dict(i=8, k=6, j=5)


def expression(dtype: str = "float64") -> Any:
    """A(i, k) B(k, j), whose indices i and j are in the result."""
    i, k, j = tnc.indices("i k j", **SIZES)
    a, b = tnc.input("A", i, k, dtype=dtype), tnc.input("B", k, j, dtype=dtype)
    return tnc.contract(a, b, out=(i, j))


def cuts_of(cuts: dict[str, int], program: Any) -> list[Cut]:
    """Cuts of some indices into blocks of these widths."""
    axes = {
        name: (value.name, axis)
        for value in program.values.values()
        for axis, name in enumerate(value.axes)
    }
    return [Cut(*axes[name], width, sink=True) for name, width in cuts.items()]


def cut_program(module: Any, cuts: dict[str, int], dtype: str = "float64") -> Any:
    compilation = module.compilation
    program = compilation.scheduled(compilation.default_dtypes(dtype), {})[0]
    return apply_cuts(program, cuts_of(cuts, program))


def stage_of(cuts: dict[str, int]) -> Slices:
    program = cut_program(tnc.compile(expression()), cuts)
    (stage,) = [stage for stage in stages_of(program) if isinstance(stage, Slices)]
    return stage


# Who owns what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("cuts", [{"i": 1}, {"i": 2}, {"i": 3, "k": 1}, {"i": 4, "k": 1}])
def test_every_position_has_one_owner(cuts: dict[str, int], world: int) -> None:
    owners = owners_of(stage_of(cuts), 0, world)
    if owners is None:  # adding up whole results sends no more
        assert world == 1 or "k" in cuts
        return
    assert [p for owned in owners.owned for p in owned] == list(range(SIZES["i"]))
    assert set().union(*map(set, owners.made)) == set(range(SIZES["i"]))
    assert owners.scattered + owners.gathered < 2 * (world - 1) / world * SIZES["i"]
    sent, got = exchanged(owners)
    assert owners.scattered == max(*sent, *got)


def exchanged(owners: Owners) -> tuple[list[int], list[int]]:
    """The positions that each rank sends and gets, one by one."""
    ranks = range(len(owners.owned))
    table = np.array([[len({*owners.made[r]} & {*owners.owned[o]}) for o in ranks] for r in ranks])
    np.fill_diagonal(table, 0)
    return list(table.sum(1)), list(table.sum(0))


def test_parts_that_lie_well_send_half_of_a_sum() -> None:
    part = traffic_of(stage_of({"j": 1}), 5)
    assert (part.summed, part.scattered) == (0.0, 0.0)
    assert part.sent_bytes == 8 * SIZES["i"] * SIZES["j"] * 4 / 5
    whole = traffic_of(stage_of({"k": 1}), 5)
    assert whole.sent_bytes == 2 * part.sent_bytes
    assert traffic_of(stage_of({"j": 1}), 1).sent_bytes == 0


def test_blocks_of_parameters_have_their_ranks_as_owners() -> None:
    owners = owners_of_shard(Shard(0, 5, 2), 4)
    assert [len(owned) for owned in owners.owned] == [2, 2, 1, 0]
    assert owners.scattered == 0


# Between ranks ----------------------------------------------------------------------------------


class Counted:
    """How many bytes a rank gives to others while this is open, and how many it adds up whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = self.summed = 0
        exchange, add_up = Team.exchange, Team.add_up

        def exchanging(team: Team, parts: Any, shapes: Any) -> Any:
            others = [x for rank, own in enumerate(parts) if rank != team.rank for x in own]
            self.given += sum(x.numel() * x.element_size() for x in others)
            return exchange(team, parts, shapes)

        def adding(team: Team, tensors: Any) -> Any:
            self.summed += sum(x.numel() * x.element_size() for x in tensors)
            return add_up(team, tensors)

        monkeypatch.setattr(Team, "exchange", exchanging)
        monkeypatch.setattr(Team, "add_up", adding)


def run_cut(cuts: dict[str, int], dtype: str, backend: str) -> tuple[bytes, float, int, int]:
    """The bits, the largest error, and the bytes that were given to others and added up whole."""
    module = tnc.compile(
        expression(dtype), backend=backend, process_group=tnc.Ranks(dist.group.WORLD)
    )
    run = module.function_of(cut_program(module, cuts, dtype), backend)
    rng = np.random.default_rng(1)
    real = [rng.integers(-3, 4, (SIZES[a], SIZES[b])) for a, b in ("ik", "kj")]
    arrays = [a.astype(dtype) * (1 + 2j if dtype.startswith("complex") else 1) for a in real]
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        given = arrays if backend == "numpy" else map(torch.from_numpy, arrays)
        results = [np.asarray(run(*given)[0])]
    error = np.abs(results[0] - arrays[0] @ arrays[1]).max()
    return results[0].tobytes(), float(error), counted.given, counted.summed


@pytest.mark.parametrize(
    ("cuts", "dtype", "summed_whole", "backend"),
    [
        ({"i": 1}, "float64", False, "torch"),
        ({"i": 2, "k": 1}, "float32", False, "numpy"),  # ranks share a block
        ({"i": 4, "k": 1}, "complex64", False, "torch"),  # several ranks in each of two blocks
        ({"i": 3, "j": 2, "k": 3}, "float64", False, "numpy"),
        ({"j": 5, "k": 1}, "int64", True, "torch"),  # one block of many slices: nothing gained
    ],
)
def test_results_are_scattered_and_gathered(
    cuts: dict[str, int], dtype: str, summed_whole: bool, backend: str, four: World
) -> None:
    """The same bits on all ranks; the sums are exact, as the operands are small integers."""
    answers = four.call(run_cut, cuts, dtype, backend)
    assert len({bits for bits, *_ in answers}) == 1
    size = SIZES["i"] * SIZES["j"] * np.dtype(dtype).itemsize
    for _, error, given, summed in answers:
        assert error == 0
        assert summed == summed_whole * size
        assert given < 2 * 3 / 4 * size


def outer_product(slices: int | None) -> tuple[list[float], set[int | None]]:
    """A(i) B(j) and its gradients: the errors, and along which axes results are joined."""
    i, j = tnc.indices("i j", i=9, j=4)
    y = tnc.input("A", i) * tnc.input("B", j)
    module = tnc.compile(
        y, dtype="float64", process_group=tnc.Ranks(dist.group.WORLD, slices=slices)
    )
    a, b = (torch.linspace(-1, 1, n, dtype=torch.float64, requires_grad=True) for n in (9, 4))
    found = module(a, b)
    found.square().sum().backward()
    wanted = torch.outer(a, b)
    gradients = torch.autograd.grad(wanted.square().sum(), (a, b))
    errors = [found - wanted, a.grad - gradients[0], b.grad - gradients[1]]
    specs = module._specialisations.values()
    stages = [stage for spec in specs for stage in spec.stages if isinstance(stage, Slices)]
    joined = {result.joined for stage in stages for result in stage.results}
    return [float(error.detach().abs().max()) for error in errors], joined


def test_gradients_of_results_that_are_joined(four: World) -> None:
    """Forward and backward are cut along output indices; gradients are joined, or added up."""
    for errors, joined in four.call(outer_product, 5):
        assert max(errors) < 1e-12
        assert joined >= {0}
