"""Launches that can be cut in several ways: every way gives the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.test_triton import check_layer, layer
from tncompiler.backends.triton import bundle, emit
from tncompiler.backends.triton.bundle import Bundle, Way, find_bundle
from tncompiler.backends.triton.chain import find_chain, pressure
from tncompiler.backends.triton.chain_kernel import Parts, chain_function
from tncompiler.backends.triton.fuse import program_low_dtype
from tncompiler.backends.triton.tiles import Tiles, way_candidates
from tncompiler.backends.triton.traffic import bundle_traffic, nbytes
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Program

WAYS = 4


def backward(name: str, dtype: str = "float16") -> Program:
    """The backward program of a small layer."""
    compilation = layer(name, "triton", getattr(torch, dtype)).cores.compilation
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    dtypes = compilation.default_dtypes(dtype)
    return compilation.training_programs(
        dtypes, compilation.nominal({"b": 64}), wrt, "triton"
    ).backward


def bundle_of(name: str) -> Bundle:
    """The launch of that program."""
    program = backward(name)
    return find_bundle(program, program_low_dtype(program))


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chain is small enough: launches are cut to the last, and every branch is tiled."""
    monkeypatch.setattr(bundle, "EASY", 0)
    monkeypatch.setattr(bundle, "ROOMY", 256)


def choose_way(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Launch in a certain way, or the last one; the list gets the ways that were chosen."""
    chosen: list[int] = []

    def choose(found: Bundle) -> tuple[tuple[int, Tiles], ...]:
        own = min(number, len(found.ways) - 1)
        chosen.append(own)
        return tuple((way, tiles) for way, tiles in way_candidates(found) if way == own)[-1:]

    monkeypatch.setattr(emit, "way_candidates", choose)
    return chosen


@pytest.mark.parametrize("number", range(1, WAYS))
@pytest.mark.parametrize("name", ["TTMatrix", "BlockTerm"])
def test_every_way_agrees_with_float64(
    name: str, number: int, crowded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """the first way is what every other test runs"""
    chosen = choose_way(number, monkeypatch)
    check_layer(name, torch.float32, batch=2)
    assert number in chosen


def made(way: Way) -> list[str]:
    return [v.name for part in way for v in (*part.outputs, *part.sums)]


@pytest.mark.parametrize("name", ["TTMatrix", "TT", "CP", "BlockTerm", "HT"])
def test_ways_make_the_same_values_and_are_ever_smaller(name: str, crowded: None) -> None:
    found: Bundle = bundle_of(name)
    assert len(found.ways) == WAYS
    wanted = sorted(v.name for v in (*found.outputs, *found.sums))
    assert all(sorted(made(way)) == wanted for way in found.ways)
    crowds = [max(sum(pressure(part)) for part in way) for way in found.ways]
    assert crowds == sorted(crowds, reverse=True)
    assert crowds[-1] < crowds[0]


def test_a_small_chain_is_not_cut() -> None:
    assert len(bundle_of("LowRank").ways) == 1


def test_a_branch_is_tiled_along_an_index_that_its_result_has(crowded: None) -> None:
    for part in bundle_of("TTMatrix").ways[-1]:
        if part.tile is not None:
            assert all(part.tile in part.flat(value.name) for value in part.outputs)
            assert int(part.tile.size) % part.width == 0


def tiled_functions(name: str, dtype: str) -> list[str]:
    """The functions of a backward pass that take an open index a few positions at a time."""
    text = emit.emit(backward(name, dtype), "backward").text
    return [part for part in text.split("@triton.jit") if "for at in" in part]


def test_rows_that_are_not_summed_are_read_once_for_all_tiles(crowded: None) -> None:
    """sums are held while all rows pass; what is written row by row needs no more than its cores"""
    found = tiled_functions("TTMatrix", "float16")
    outside = {part.index("for start in") < part.index("for at in"): part for part in found}
    assert "parts" not in outside[True].partition(":")[0]
    assert "parts" in outside[False].partition(":")[0]


def test_bytes_of_tiles_are_counted_as_they_are_read(crowded: None) -> None:
    found = bundle_of("TTMatrix")
    part = next(p for p in found.ways[-1] if p.tile is not None and not p.sums)
    sizes, programs, turns = {part.stream.size: 64}, 3, 5
    wanted = programs * sum(4 * math.prod(map(int, value.shape)) for value in found.sums)
    for value in (*part.inputs, *part.outputs):
        flat = part.flat(value.name)
        times = 1 if part.stream in flat else programs * (turns if part.tile in flat else 1)
        wanted += times * nbytes(value, sizes)
    assert bundle_traffic(found, (part,), sizes, programs, turns).cached == wanted


@pytest.mark.parametrize(("dtype", "batches"), [("float32", False), ("float16", True)])
def test_in_32_bits_a_batch_of_one_matrix_is_a_matrix(dtype: str, batches: bool) -> None:
    """of a batch each warp holds matrices of its own, of a matrix all warps hold parts"""
    program = backward("BlockTerm", dtype)
    whole = find_bundle(program, program_low_dtype(program)).ways[0][0]
    core = max(whole.sums, key=lambda value: math.prod(map(int, value.shape)))
    part = find_chain(drop_dead_steps(replace(program, outputs=(core.name,))), whole.low)
    block = part.flat(core.name)[0]
    one = replace(part, tile=block, width=1)
    made = chain_function(one, "a_kernel", {v: v for v in program.values}, Parts.of(one.sums))
    assert ("widen_batch(" in made.text) == batches
