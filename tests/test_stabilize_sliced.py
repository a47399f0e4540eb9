"""Networks that carry exponents, computed block by block along an index that is summed.

The oracle is numpy.einsum in float64 on the same numbers without the factor that makes them tiny.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.oracle import exact
from tncompiler.compiler import Compilation
from tncompiler.ir.passes.apart import sum_apart, summed_axes
from tncompiler.ir.program import Contract, Program
from tncompiler.planning.schedule import schedule

TINY = np.float32(1e-20)  # the product of two such numbers is zero in float32
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3))


def ring(size: int = 8) -> tnc.Expr:
    """Four tensors, each joined to every other."""
    bonds = {edge: tnc.Index(f"e{n}", size) for n, edge in zip(count(), EDGES, strict=False)}
    legs = [[index for edge, index in bonds.items() if k in edge] for k in range(4)]
    return tnc.contract(*(tnc.input(f"T{k}", *own) for k, own in enumerate(legs)), out=())


def numbers(expr: tnc.Expr) -> dict[str, np.ndarray]:
    """Positions along the first bond differ by twelve orders of magnitude."""
    rng = np.random.default_rng(0)
    made = {k.name: rng.standard_normal(k.shape).astype(np.float32) for k in expr.leaves}
    made["T0"] *= np.logspace(-6, 6, 8, dtype=np.float32)[:, None, None]
    return made


def options(limit: int | None) -> tnc.PlanOptions:
    return tnc.PlanOptions(stabilize="exponent", memory_limit=limit)


@pytest.fixture(scope="module")
def known() -> tuple[tnc.Expr, dict[str, np.ndarray], float]:
    expr = ring()
    arrays = numbers(expr)
    (expected,) = exact((expr,), {name: array.astype(float) for name, array in arrays.items()})
    return expr, arrays, float(expected)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_sliced_sums_align_exponents(framework: str, known) -> None:
    """sliced sums align exponents"""
    expr, arrays, expected = known
    given = {name: array * TINY for name, array in arrays.items()}
    if framework == "torch":
        given = {name: torch.from_numpy(array) for name, array in given.items()}
    for limit, sliced in ((None, False), (8_000, True)):
        f = tnc.compile(expr, framework=framework, plan=options(limit))
        value, scale = f(**given)
        got = float(value) * 10.0 ** (float(scale) + 80)
        assert got == pytest.approx(expected, rel=2e-5)
        plan = f.plan()
        assert bool(plan.sliced_indices) is sliced
        assert limit is None or plan.peak_memory <= limit


def test_gradients_of_sliced_sums(known) -> None:
    expr, arrays, expected = known
    given = {name: array * TINY for name, array in arrays.items()}
    g = tnc.compile(tnc.log(expr.abs()), framework="numpy", plan=options(36_000))
    value, pull = g.vjp(**given)
    assert value == pytest.approx(np.log(abs(expected)) - 80 * np.log(10), rel=1e-6)
    gradients = pull(np.float32(1))
    double = {name: array.astype(float) for name, array in arrays.items()}
    (environment,) = exact((tnc.environment(expr, expr.terms[1]),), double)
    wanted = environment / expected / 1e-20
    assert np.allclose(gradients["T1"], wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())


def scheduled(expr: tnc.Expr) -> Program:
    compilation = Compilation(expr, None, {}, None)
    logical = compilation.logical(compilation.default_dtypes("float32"))
    return schedule(logical, {}, compilation.options)[0]


def test_sums_in_steps_of_their_own() -> None:
    """A pass: the same object when it has nothing to do."""
    program = scheduled(ring())
    axes = summed_axes(program)
    assert len(axes) == 6
    for axis in axes:
        once = sum_apart(program, axis)
        assert once is not program
        assert sum_apart(once, axis) is once
        assert set(summed_axes(once)) < set(axes)
        unary = [s for s in once.steps if isinstance(s.op, Contract) and len(s.operands) == 1]
        assert len(unary) == 1


def test_without_steps_of_their_own_nothing_fits(known, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit above is kept by them alone."""
    expr, _, _ = known
    monkeypatch.setattr("tncompiler.limiting.summed_axes", lambda program: [])
    f = tnc.compile(expr, framework="numpy", plan=options(8_000))
    with pytest.raises(tnc.TncError, match="8,000 B cannot be kept"):
        f.plan()
