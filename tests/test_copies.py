"""Permuting copies: how they walk, where they stay near, and when two take less than one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import tncompiler as tnc
from tncompiler.ir.program import Permute
from tncompiler.planning.copies import Walk, halfway, loops_of, walk
from tncompiler.planning.machine import Machine, load_machine
from tncompiler.planning.rates import Library
from tncompiler.planning.ways import Ways

SIZES = (12, 20, 1, 15, 9)


def walked(order: Sequence[int], sizes: Sequence[int], item: int = 4) -> Walk | None:
    loops = loops_of(range(len(sizes)), order, sizes)
    return None if loops is None else walk(loops, item)


def fetched(order: tuple[int, ...], item: int, lines: int) -> int:
    """How often a cache with room for so many lines fetches one when an array is read."""
    read = np.arange(np.prod(SIZES)).reshape(SIZES).transpose(order).ravel() * item // 64
    held: dict[int, None] = {}  # the line that was read last comes last
    count = 0
    for line in read.tolist():
        if line in held:
            del held[line]
        else:
            count += 1
            if len(held) == lines:
                del held[next(iter(held))]
        held[line] = None
    return count


@pytest.mark.parametrize("order", list(permutations((0, 1, 3, 4))))
@pytest.mark.parametrize("item", [4, 8])
def test_lines_are_fetched_again_as_a_cache_does(order: tuple[int, ...], item: int) -> None:
    """Against a cache played through, which forgets the line that was read longest ago."""
    order = (*order[:2], 2, *order[2:])  # an axis of size 1 changes nothing
    found = walked(order, SIZES, item)
    elements = int(np.prod(SIZES))
    once = elements * item // 64
    if found is None:
        assert fetched(order, item, 1) == once
        return
    for room in (16, 64, 256):  # lines
        again = sum(share for share, span in found.again if span > 64 * room)
        said = once + elements * again
        assert abs(said - fetched(order, item, room)) <= 0.12 * elements


def test_runs_and_blocks_of_a_walk() -> None:
    def loops(order: tuple[int, ...]) -> tuple[int, bool, int]:
        found = walked(order, (2, 3, 5, 7))
        assert found is not None
        return found.run, found.kept, found.block

    assert loops((1, 0, 2, 3)) == (35, True, 70)
    assert loops((2, 0, 1, 3)) == (7, True, 42)  # axes that follow one another are one loop
    assert loops((3, 0, 1, 2)) == (30, False, 210)
    assert loops((0, 1, 3, 2)) == (5, False, 35)
    assert loops((3, 2, 1, 0)) == (2, False, 6)


def test_what_is_empty_is_not_walked() -> None:
    assert walked((2, 0, 1), (4, 0, 5)) is None
    assert walked((1, 0, 2), (4, 1, 5)) is None


def test_halfway_brings_runs_together() -> None:
    assert halfway((0, 1, 2), (2, 0, 1)) == (0, 2, 1)
    assert halfway((0, 1, 2), (0, 2, 1)) is None  # that is the copy itself
    assert halfway((0, 1, 2), (1, 0, 2)) is None  # in runs as it is
    assert halfway((0, 1, 2, 3), (3, 2, 0, 1)) == (0, 2, 3, 1)


# the reference machine, where copies that leave the cache take much longer
_SLOW = {
    name: replace(rates, spans=(8e3, 8e3, 8e3, 2e3, 1e3))
    for name, rates in load_machine("reference").libraries.items()
    if isinstance(rates, Library)
}
FAR_IS_SLOW = Machine("far is slow", _SLOW, "a test")


def test_two_copies_where_one_goes_far() -> None:
    ways, whole = Ways(_SLOW["numpy"]), (512, 64, 64)
    time, between = ways.copies((0, 1, 2), (2, 0, 1), whole, "float32")
    assert between == (0, 2, 1)
    parts = [((0, 1, 2), between), (between, (2, 0, 1))]
    assert time == sum(ways.permute_us(*part, whole, "float32") for part in parts)
    assert ways.copies((0, 1, 2), (2, 0, 1), (8, 8, 8), "float32")[1] is None  # it is near
    assert ways.copies((0, 1, 2), (1, 0, 2), whole, "float32")[1] is None  # in long runs


I, J, K, H = (tnc.Index(k, n) for k, n in zip("ijkh", (512, 64, 64, 16), strict=True))
X = tnc.input("x", I, J, K)


def copies_of(f: Any, name: str) -> list[tuple[int, ...]]:
    """The axes of the copies that lead from an argument to what is read of it."""
    compilation = f.compilation
    program = compilation.inference(compilation.default_dtypes("float32"), {}).fitted.program
    found = []
    for step in program.steps:
        if isinstance(step.op, Permute) and step.operands == (name,):
            found.append(step.op.axes)
            name = step.out.name
    return found


def compiled(expr: Any, machine: Any) -> Any:
    plan = tnc.PlanOptions(machine=machine)
    return tnc.compile(expr, framework="numpy", dtype="float32", plan=plan)


def test_programs_copy_twice_where_that_is_nearer() -> None:
    total = X + tnc.input("y", K, J, I)
    assert len(copies_of(compiled(total, "reference"), "x")) <= 1
    f = compiled(total, FAR_IS_SLOW)
    copied = {name: copies_of(f, name) for name in "xy"}
    assert sorted(map(len, copied.values())) == [0, 2], copied
    rng = np.random.default_rng(0)
    x, y = rng.random((512, 64, 64), np.float32), rng.random((64, 64, 512), np.float32)
    np.testing.assert_array_equal(f(x, y), x + y.transpose(2, 1, 0))


def test_products_read_copies_that_stay_near() -> None:
    """The batch of a product, innermost in an operand, is brought before the summed axis alone."""
    product = tnc.contract(X, tnc.input("w", K, J, H), out=(K, I, H))
    f = compiled(product, FAR_IS_SLOW)
    assert copies_of(f, "x") == [(0, 2, 1)]
    rng = np.random.default_rng(0)
    x, w = rng.random((512, 64, 64), np.float32), rng.random((64, 64, 16), np.float32)
    np.testing.assert_allclose(f(x, w), np.einsum("ijk,kjh->kih", x, w), rtol=1e-5)
