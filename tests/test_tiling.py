"""Blocks of a batch on several threads: right, bitwise the same every time, never in the way."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.large import as_if_large
from tests.test_slicing import (
    arguments_of,
    check_random_network,
    close,
    every_cut,
    layer,
    programs_of,
    run,
)
from tncompiler.backends.numpy import memory, threads
from tncompiler.backends.numpy.products import product
from tncompiler.ir.program import Loop
from tncompiler.ir.validate import validate
from tncompiler.planning.machine import as_machine
from tncompiler.planning.slicing import apply_cuts
from tncompiler.planning.tiling import in_lanes, tile_program


@pytest.fixture
def two_lanes() -> Iterator[None]:
    """As if there were two threads, and handing work to one cost nothing."""
    with as_if_large():
        yield


def chain(batch: int | None = None) -> tnc.ir.expressions.Expr:  # type: ignore[name-defined]
    sizes = {"i": 8, "j": 8, "o": 8, "p": 8, "r": 8} | ({} if batch is None else {"b": batch})
    b, i, j, o, p, r = tnc.indices("b i j o p r", **sizes)
    x = tnc.input("x", b, i, j)
    first, second = tnc.param("A", i, o, r), tnc.param("B", r, j, p)
    return tnc.relu(tnc.contract(x, first, second, out=(b, o, p)) + tnc.param("c", o, p))


# ---------------------------------------------------------------------------- the right values


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_every_index_of_a_layer_can_be_shared_out(lanes: int, batch: int) -> None:
    f = tnc.compile(layer(), framework="numpy", dtype="float64", seed=0)
    binding = f.compilation.nominal({"b": batch})
    loops = 0
    for program in programs_of(f, {"b": 7}):
        arrays = arguments_of(program, binding)
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = run(program, arrays, "numpy")
            for cut in every_cut(program, f.compilation.nominal({"b": 7}), (1, 2)):
                shared = validate(in_lanes(apply_cuts(program, [cut]), lanes), scheduled=True)
                loops += any(isinstance(step.op, Loop) for step in shared.steps)
                assert close(run(shared, arrays, "numpy"), wanted), cut
    assert loops > 20


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_shared_out(seed: int) -> None:
    check_random_network(7_000 + seed, lambda program: in_lanes(program, 2))


@pytest.mark.parametrize("free", [True, False], ids=["free batch", "fixed batch"])
def test_a_module_trains_in_lanes(two_lanes: None, free: bool) -> None:
    expr = chain(None if free else 1024)
    f = tnc.compile(expr, backend="numpy", dtype="float64", seed=0)
    reference = tnc.compile(expr, backend="torch", dtype="float64", share=f)
    x = torch.randn(1024, 8, 8, dtype=torch.float64)
    found = []
    for module in (f, reference):
        given = x.clone().requires_grad_()
        value = module(given)
        wanted = (given, *f.parameters())
        found.append((value, *torch.autograd.grad(value.square().sum(), wanted)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    sizes = {"b": 1024} if free else None
    for part in ("forward", "backward"):
        assert "run_blocks" in f.source(sizes=sizes, part=part, backend="numpy")


@pytest.mark.parametrize(
    ("last", "written"),
    [
        (lambda x: x, "np.maximum(t1, 0, out=t2[start:stop])"),
        (lambda x: tnc.exp(-x), "np.negative(t2, out=t2)"),
        (lambda x: x.sum(x.indices[1]), "np.maximum(t1, 0, out=t1)"),
    ],
    ids=["to its place", "between others", "before a sum"],
)
def test_maps_in_lanes_write_into_what_they_read(
    two_lanes: None, last: Callable[[Any], Any], written: str
) -> None:
    expr = last(chain(1024))
    g = tnc.compile(expr, framework="numpy", seed=0)
    assert written in g.source()
    x = np.random.default_rng(0).normal(size=(1024, 8, 8)).astype(np.float32)
    kept = x.copy()
    wanted = tnc.compile(expr, framework="numpy", seed=0)
    np.testing.assert_array_equal(g(x), g(x))
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_allclose(g(x), wanted(x), rtol=1e-5, atol=1e-5)


def test_booleans_stay_booleans_in_lanes(two_lanes: None) -> None:
    i, j = tnc.indices("i j", i=64, j=64)
    f = tnc.compile(tnc.input("x", i, j, dtype="bool").sum(i, j), framework="numpy")
    for x in (np.zeros((64, 64), bool), np.eye(64, dtype=bool)):
        got = f(x)
        assert got.dtype == np.bool_ and got == x.any()


def test_explain_names_the_blocks(two_lanes: None) -> None:
    f = tnc.compile(chain(1024), framework="numpy", seed=0)
    (line,) = [one for one in f.explain().splitlines() if one.startswith("blocks")]
    assert "of b at a time, on 2 threads" in line


def test_sums_do_not_depend_on_who_is_first(two_lanes: None) -> None:
    g = tnc.compile(chain(2048), framework="numpy", seed=0)
    x = np.random.default_rng(0).normal(size=(2048, 8, 8)).astype(np.float32)
    seen = set()
    for _ in range(20):
        value, pull = g.vjp(x)
        parts = (value, *pull(np.ones_like(value)).values())
        seen.add(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    assert len(seen) == 1


def test_the_plan_stays_whole_where_that_is_faster() -> None:
    g = tnc.compile(chain(8), framework="numpy", seed=0)
    program = g.compilation.inference(g._dtypes(), {}).fitted.program
    rates = as_machine("reference").libraries["numpy"]
    assert tile_program(program, {}, rates, 2, 100.0).program is program


def test_a_cut_is_predicted_to_be_faster() -> None:
    f = tnc.compile(chain(65536), framework="numpy", seed=0)
    program = f.compilation.inference(f._dtypes(), {}).fitted.program
    rates = as_machine("reference").libraries["numpy"]
    whole, cut = (tile_program(program, {}, rates, lanes, 100.0) for lanes in (1, 2))
    assert any(isinstance(step.op, Loop) and step.op.lanes == 2 for step in cut.program.steps)
    assert cut.time_us < 0.9 * whole.time_us


def test_memory_asked_for_is_not_spent_on_lanes(two_lanes: None) -> None:
    options = tnc.PlanOptions(memory_limit="1GiB")
    f = tnc.compile(chain(48), framework="numpy", plan=options)
    assert "run_blocks" not in f.source()


# ---------------------------------------------------------------------------- run_blocks


def test_blocks_are_added_in_order_and_written_once() -> None:
    seen = np.zeros(23, int)

    def block(start: int, stop: int) -> tuple[np.ndarray, ...]:
        seen[start:stop] += 1
        return (np.arange(start, stop).sum(keepdims=True),)

    (total,) = threads.run_blocks(block, 23, 4, lanes=3)
    assert (seen == 1).all() and total == np.arange(23).sum()


def test_no_positions_give_sums_of_nothing() -> None:
    (total,) = threads.run_blocks(lambda a, b: (np.ones((b - a, 2)).sum(0),), 0, 4, lanes=2)
    assert total.shape == (2,) and not total.any()


def test_what_a_block_raises_is_raised_when_all_are_done() -> None:
    done: list[int] = []

    def block(start: int, stop: int) -> tuple[np.ndarray, ...]:
        if start in (0, 9):
            raise RuntimeError(f"block {start}")
        done.append(start)
        return ()

    with pytest.raises(RuntimeError, match="block 0"):
        threads.run_blocks(block, 10, 1, lanes=2)
    assert set(done) <= set(range(1, 9))
    threads.run_blocks(lambda a, b: (), 10, 1, lanes=2)  # the worker is there again


def test_numpy_is_told_to_raise_in_every_lane() -> None:
    def block(start: int, stop: int) -> tuple[np.ndarray, ...]:
        return (np.float64(1.0) / np.zeros(stop - start) if start else np.zeros(stop - start),)

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        threads.run_blocks(block, 8, 4, lanes=2)


def test_many_callers_share_the_workers() -> None:
    def call(number: int) -> int:
        (total,) = threads.run_blocks(lambda a, b: (np.full(1, b - a),), number, 3, lanes=4)
        return int(total[0])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(call, range(1, 200))) == list(range(1, 200))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_gets_workers_of_its_own() -> None:
    threads.run_blocks(lambda a, b: (), 4, 1, lanes=2)
    child = os.fork()
    if not child:
        (total,) = threads.run_blocks(lambda a, b: (np.full(1, b - a),), 8, 2, lanes=2)
        os._exit(0 if total[0] == 8 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_blas_has_one_thread_inside_and_what_it_had_outside() -> None:
    class Library:
        num_threads = 3

        def set_num_threads(self, count: int) -> None:
            self.num_threads = count

    library = Library()
    barrier = threading.Barrier(2)

    @threads.one_blas_thread
    def inside() -> int:
        barrier.wait(5)
        return library.num_threads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_libraries", lambda: (library,))
        with ThreadPoolExecutor(2) as pool:
            assert [f.result() for f in [pool.submit(inside) for _ in range(2)]] == [1, 1]
        assert library.num_threads == 3
        assert threads.blas_threads() == 3


def test_every_thread_takes_blas_threads_away() -> None:
    """threadpoolctl lets no other thread set them than the first that did."""
    (library, *_) = threads._libraries()
    before = library.num_threads
    threads._set_threads(library, 2)
    library.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(threads.one_blas_thread(lambda: library.num_threads)).result() == 1
        assert library.num_threads == 2
    finally:
        threads._set_threads(library, before)
    assert library.num_threads == before


@pytest.mark.parametrize(("a", "b"), [((3, 4), (4, 5)), ((7, 3, 4), (4, 5)), ((3, 4), (7, 4, 5))])
def test_products_in_kept_memory(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=a), rng.normal(size=b)
    np.testing.assert_array_equal(product(left, right), left @ right)


# ---------------------------------------------------------------------------- crowded cores


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> threads._Crowd:
    made = threads._Crowd()
    monkeypatch.setattr(threads, "_crowd", made)
    return made


def shares_out() -> bool:
    """Whether a loop of two blocks is handed to another thread."""
    seen = set()
    second = threading.Event()

    def block(start: int, stop: int) -> tuple[()]:
        seen.add(threading.get_ident())
        if start:
            second.set()
        else:
            second.wait(0.2)  # until another thread has come, if one does
        return ()

    threads.run_blocks(block, 2, 1, lanes=2)
    return len(seen) == 2


def test_threads_that_come_late_are_left_alone_for_a_while(crowd: threads._Crowd) -> None:
    """each time for twice as long, up to a bound; one that comes in time ends it"""
    now = time.monotonic()
    crowd.note(waited_s=1.0, worked_s=0.1)
    assert crowd.is_here() and crowd.until >= now + threads.FIRST_PAUSE_S
    for _ in range(20):
        crowd.note(waited_s=1.0, worked_s=0.1)
    assert crowd.until <= time.monotonic() + threads.LONGEST_PAUSE_S
    assert crowd.pause == threads.LONGEST_PAUSE_S
    crowd.note(waited_s=0.05, worked_s=0.1)
    assert crowd.pause == threads.FIRST_PAUSE_S
    crowd.until = 0.0
    assert not crowd.is_here()


def test_what_a_thread_waits_for_is_noted(crowd: threads._Crowd) -> None:
    caller = threading.get_ident()

    def block(start: int, stop: int) -> tuple[np.ndarray]:
        time.sleep(0.01 if threading.get_ident() == caller else 0.3)
        return (np.full(3, float(start)),)

    for _ in range(2):  # alone, the second time
        (total,) = threads.run_blocks(block, 2, 1, lanes=2)
        np.testing.assert_array_equal(total, np.ones(3))
        assert crowd.is_here() == (len(threads._shared_workers().cores) > 1)
        crowd.until += 60.0 * (crowd.until > 0)


def test_nothing_is_handed_out_in_a_crowd(crowd: threads._Crowd) -> None:
    assert shares_out() == (len(threads._shared_workers().cores) > 1)
    crowd.until = time.monotonic() + 60.0
    assert not shares_out()


# ---------------------------------------------------------------------------- in their place


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4096 + 37, 16, 8), (64, 70_000, 64), (0, 4, 5)])
def test_a_product_is_written_where_it_belongs(shape: tuple[int, int, int], dtype: str) -> None:
    """plain, in pieces by rows, as a sum of pieces, and nothing"""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, side).astype(dtype) for side in ((m, k), (k, n)))
    whole = np.full((3, m * n), 7, dtype)
    made = product(a, b, out=whole[1:2])
    assert made.shape == (m, n) and (not made.size or np.shares_memory(made, whole))
    np.testing.assert_array_equal(whole[1].reshape(m, n), a @ b)
    np.testing.assert_array_equal(whole[[0, 2]], 7)


@pytest.mark.parametrize("stacked", [True, False], ids=["as it lies", "copied there"])
def test_a_product_is_written_between_others(stacked: bool) -> None:
    """a block of an inner axis: of the product's shape, or with rows that are several axes"""
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 6, 3)), rng.random((5, 3, 4))
    whole = np.full((5, 12, 4) if stacked else (5, 2, 9, 4), 7.0)
    place = whole[:, 3:9] if stacked else whole[:, :, 3:6]
    made = product(a, b, out=place)
    np.testing.assert_array_equal(made, a @ b)
    np.testing.assert_array_equal(place.reshape(5, 6, 4), a @ b)
    assert np.shares_memory(made, whole) == stacked
    assert (whole == 7.0).sum() == whole.size - made.size


def test_a_copy_is_written_where_it_belongs() -> None:
    x, whole = np.arange(6.0).reshape(2, 3), np.zeros((2, 3, 2))
    memory.copied(x.T, out=whole[1])
    np.testing.assert_array_equal(whole[1], x.T)
    np.testing.assert_array_equal(whole[0], 0.0)


def test_permuted_results_are_views_of_the_whole(two_lanes: None) -> None:
    """the blocks are not copied into another order; what the loop reads again stays in it"""
    b, i, j, k = tnc.indices("b i j k", b=1024, i=8, j=8, k=8)
    x, w = tnc.input("x", b, i, j), tnc.param("W", b, j, k)
    once = tnc.contract(x, w, out=(k, i, b))
    f = tnc.compile(once, framework="numpy", seed=0)
    source = f.source()
    assert re.search(r"run_blocks\(.*\n    t\d+ = t\d+\.transpose", source)
    given = np.random.default_rng(0).random((1024, 8, 8)).astype(np.float32)
    wanted = np.einsum("bij,bjk->kib", given, f.parameters["W"])
    np.testing.assert_allclose(f(given), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_blocks_of_the_first_axis_are_made_in_their_place(two_lanes: None, part: str) -> None:
    f = tnc.compile(chain(1024), backend="numpy", seed=0)
    source = f.source(part=part, backend="numpy")
    assert "out=" in source and "[start:stop] = " not in source
