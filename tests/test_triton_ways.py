"""Launches that can be cut in several ways: every way gives the same numbers."""

from __future__ import annotations

import pytest
import torch

from tests.test_triton import check_layer, layer
from tncompiler.backends.triton import bundle, emit
from tncompiler.backends.triton.bundle import Bundle, Way, find_bundle
from tncompiler.backends.triton.chain import pressure
from tncompiler.backends.triton.fuse import program_low_dtype
from tncompiler.backends.triton.tiles import Tiles, way_candidates
from tncompiler.ir.program import Program

WAYS = 4


def backward(name: str) -> Program:
    """The backward program of a small layer."""
    compilation = layer(name, "triton", torch.float16).cores.compilation
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    dtypes = compilation.default_dtypes("float16")
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
