"""Networks that carry exponents through windows and convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import tncompiler as tnc
from tests.networks import random_network
from tests.oracle import evaluate_all
from tests.test_stabilize import STABLE, assert_near
from tncompiler.compiler import Compilation
from tncompiler.ir.passes.stabilize import networks_of
from tncompiler.ir.program import Convolve, Fold, Program, Unfold
from tncompiler.planning.schedule import schedule


def programs(
    outputs: tuple[tnc.Expr, ...], dtype: str, sizes: dict, given: dict
) -> tuple[Program, Program]:
    """The logical program and its schedule for these sizes, of which compile is told `given`."""
    compilation = Compilation(outputs, None, dict(given), None)
    logical = compilation.logical(compilation.default_dtypes(dtype))
    return logical, schedule(logical, dict(sizes), compilation.options)[0]


def marks(program: Program) -> list[bool]:
    found = networks_of(program)
    return [name in found for name in program.outputs]


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_a_schedule_has_the_pairs_of_its_logical_program(first: int) -> None:
    """Results are packed by the logical program's marks, made by the schedule's."""
    for seed in range(first, first + 20):
        case = random_network(seed)
        logical, scheduled = programs(case.outputs, case.dtype, case.sizes, case.given)
        assert marks(logical) == marks(scheduled), seed


@dataclass(frozen=True)
class Known:
    expr: tnc.Expr
    ops: tuple[type, ...]  # some of which its schedule has


def known() -> dict[str, Known]:
    """Products of four tensors: seen through a window, summed into one, or convolved."""
    b, n, i, r = tnc.Index("b", 3), tnc.Index("n", 9), tnc.Index("i", 2), tnc.Index("r", 3)
    out, tap = tnc.Index("o", 7), tnc.Index("k", 3)
    x, mixed = tnc.input("x", b, n, i), tnc.input("A", i, r)
    kernel, last = tnc.input("w", tap, r), tnc.input("v", r, b)
    window = tnc.window(n, out=out, kernel=tap)
    y = tnc.input("y", b, out, i)
    return {
        "convolved": Known(tnc.contract(window, x, mixed, kernel, last, out=(b, out)), (Convolve,)),
        "transposed": Known(
            tnc.contract(window, y, mixed, kernel, last, out=(b, n)), (Convolve, Fold)
        ),
        "seen": Known(tnc.contract(window, x, mixed, last, out=(b, out, tap)), (Unfold,)),
    }


KNOWN = known()


def numbers(expr: tnc.Expr) -> dict[str, np.ndarray]:
    """Each sample is a thousand times the one before."""
    rng = np.random.default_rng(0)
    made = {k.name: rng.standard_normal(k.shape).astype(np.float32) for k in expr.leaves}
    return {**made, "v": made["v"] * np.array([1e-3, 1, 1e3], np.float32)}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_convolutions_whose_values_no_float_holds(name: str, factor: float) -> None:
    """forward, and the gradient of the value with its scale held fixed"""
    expr, arrays = KNOWN[name].expr, numbers(KNOWN[name].expr)
    double = {leaf: array.astype(float) for leaf, array in arrays.items()}
    (wanted,) = evaluate_all((expr,), double, {}, 1e-16)
    given = {leaf: array * np.float32(factor) for leaf, array in arrays.items()}
    g = tnc.compile(expr, framework="numpy", plan=STABLE)
    (value, scale), pull = g.vjp(**given)
    shift = len(arrays) * np.log10(factor)
    for sample in range(3):
        got = value[sample].astype(float) * 10.0 ** (scale[sample] - shift)
        assert_near(got, wanted.value[sample], 1e-5)
    found = pull(np.ones_like(value))["v"]  # the value is linear in v
    total = np.sum(found.astype(float) * given["v"])
    assert total == pytest.approx(np.sum(value.astype(float)), rel=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_the_networks_above_use_windows(name: str) -> None:
    _, scheduled = programs((KNOWN[name].expr,), "float32", {}, {})
    assert any(isinstance(step.op, KNOWN[name].ops) for step in scheduled.steps)
