"""Stages of programs with loops, and how slices are dealt out; no ranks."""

from __future__ import annotations

from itertools import pairwise

import pytest

import tncompiler as tnc
from tncompiler.compiler import Compilation
from tncompiler.distributed.dealing import deal, work_before
from tncompiler.distributed.stages import Common, Slices, resolve, stages_of
from tncompiler.ir.program import Program
from tncompiler.ir.validate import validate
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.slicing import Cut, apply_cuts


def chain(*sizes: int) -> Program:
    """A product of matrices of these sizes, summed over everything, scheduled."""
    indices = [tnc.Index(f"i{k}", size) for k, size in enumerate(sizes)]
    tensors = [tnc.input(f"A{k}", a, b) for k, (a, b) in enumerate(pairwise(indices))]
    made = tnc.contract(*tensors, out=())
    compilation = Compilation(made, None, {}, PlanOptions())
    return compilation.scheduled(compilation.default_dtypes("float64"), {})[0]


def sliced(*sizes: int, widths: tuple[int, ...]) -> Slices:
    """The slices of a chain, cut along its inner indices in blocks of these widths."""
    program = chain(*sizes)
    cuts = [Cut(f"A{k}", 1, width, sink=True) for k, width in enumerate(widths)]
    (stage,) = [s for s in stages_of(apply_cuts(program, cuts)) if isinstance(s, Slices)]
    return stage


def test_a_program_without_loops_is_one_stage() -> None:
    (stage,) = stages_of(chain(2, 3, 4))
    assert isinstance(stage, Common)
    assert validate(stage.program, scheduled=True) is stage.program


def test_a_nest_of_loops_is_one_stage_whose_slices_have_names() -> None:
    stage = sliced(3, 4, 5, 6, widths=(2, 2))
    assert stage.count == 2 * 3
    assert {level.loop.index for level in stage.levels} == {"i1", "i2"}
    names = [stage.name(k) for k in range(stage.count)]
    assert len(set(names)) == 6
    assert names[0].startswith("slice 0 (") and "i1 0:2" in names[0]


def test_bodies_with_numbers_for_blocks_are_programs() -> None:
    stage = sliced(3, 5, 5, 6, widths=(2, 3))
    blocks = {level.loop.block: 1 for level in stage.levels}
    whole = stage.levels[-1].loop.body
    body = resolve(whole, blocks)
    assert all(isinstance(n, int) for value in body.values.values() for n in value.shape)
    assert resolve(whole, {}) is whole


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("widths", [(1, 1), (2, 3), (4, 5), (1, 4)])
def test_every_slice_is_dealt_once_in_order(world: int, widths: tuple[int, int]) -> None:
    stage = sliced(3, 7, 5, 2, widths=widths)
    shares = deal(stage, world)
    assert [k for share in shares for k in share] == list(range(stage.count))
    assert all(a.stop == b.start for a, b in pairwise(shares))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shares_differ_by_less_than_a_slice(world: int) -> None:
    """Slices of unequal cost: the last block of an index has one position of four."""
    stage = sliced(2, 9, 7, 2, widths=(4, 1))
    done = [work_before(stage, k) for k in range(stage.count + 1)]
    largest = max(b - a for a, b in pairwise(done))
    shares = [done[s.stop] - done[s.start] for s in deal(stage, world)]
    assert max(shares) - min(shares) <= 2 * largest
    assert max(shares) <= done[-1] / world + largest
    by_number = [done[stage.count * (r + 1) // world] - done[stage.count * r // world]
                 for r in range(world)]  # fmt: skip
    assert max(shares) <= max(by_number)


def test_nothing_is_dealt_where_there_are_no_slices() -> None:
    stage = sliced(3, 0, 4, widths=(1,))
    assert stage.count == 0
    assert deal(stage, 3) == (range(0),) * 3
