"""Cores that stand at several sites: each use can be sliced by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.oracle import exact
from tncompiler.compiler import Compilation
from tncompiler.ir.passes.slicing import linked_axes
from tncompiler.ir.passes.uses import join_uses, part_uses
from tncompiler.ir.program import Loop, Program
from tncompiler.ir.validate import validate
from tncompiler.planning.slicing import Cut, apply_cuts

SITES, BOND, BATCH = 4, 8, 3


def uniform_ring() -> tnc.Expr:
    """A uniform MPS of four sites in a ring, on a batch of products."""
    bonds = [tnc.Index(f"b{k}", BOND) for k in range(SITES)]
    legs = [tnc.Index(f"p{k}", 2) for k in range(SITES)]
    batch = tnc.Index("n", BATCH)
    core = tnc.param("A", bonds[0], legs[0], bonds[1])
    sites = [core(bonds[k], legs[k], bonds[(k + 1) % SITES]) for k in range(SITES)]
    inputs = [tnc.input(f"x{k}", batch, leg) for k, leg in enumerate(legs)]
    return tnc.contract(*sites, *inputs, out=(batch,))


def scheduled(expr: tnc.Expr) -> Program:
    compilation = Compilation(expr, None, {}, None)
    return compilation.scheduled(compilation.default_dtypes("float32"), {})[0]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"A": (BOND, 2, BOND), **{f"x{k}": (BATCH, 2) for k in range(SITES)}}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_uniform_network_is_sliced_along_a_bond(framework: str) -> None:
    expr, given = uniform_ring(), arrays()
    (expected,) = exact((expr,), given)
    inputs = [given[f"x{k}"] for k in range(SITES)]
    for limit in (1_200, 600):
        options = tnc.PlanOptions(memory_limit=2 * limit)
        f = tnc.compile(expr, framework=framework, dtype="float64", plan=options)
        if framework == "numpy":
            f.parameters["A"] = given["A"]
            value = f(*inputs)
        else:
            f.load_state_dict({"A": torch.from_numpy(given["A"])})
            with torch.no_grad():
                value = f(*map(torch.from_numpy, inputs)).numpy()
        assert np.allclose(value, expected, rtol=1e-10)
    plan = tnc.plan(expr, options=tnc.PlanOptions(memory_limit=600))
    assert plan.peak_memory <= 600
    assert any(name.startswith("b") for name in plan.sliced_indices)


def test_uses_are_parted_and_joined_again() -> None:
    program = scheduled(uniform_ring())
    links = linked_axes(program)
    assert links["A", 0] == links["A", 2]
    parted, stands_for = part_uses(program)
    validate(parted, scheduled=True)
    assert set(stands_for.values()) == {"A"}
    assert len(stands_for) == program.uses()["A"] - 1
    links = linked_axes(parted)
    assert all(links[name, 0] != links[name, 2] for name in ("A", *stands_for))
    assert join_uses(parted, stands_for) == program
    assert part_uses(parted) == (parted, {})


def test_what_is_not_tangled_stays_as_it_is() -> None:
    i, j, k = tnc.indices("i j k", i=4, j=4, k=4)
    x = tnc.input("x", i, j)
    program = scheduled(tnc.contract(x, tnc.input("y", j, k), x, out=(k,)))
    parted, stands_for = part_uses(program)
    assert parted is program
    assert join_uses(program, stands_for) is program


def test_loops_read_the_core_itself() -> None:
    """Whole, it is handed over once; in blocks, once for each use that is cut."""
    program = scheduled(uniform_ring())
    parted, _ = part_uses(program)
    root = next(r for r in linked_axes(parted).values() if r[0].startswith("A"))
    cut = apply_cuts(program, [Cut(*root, 1, sink=True)])
    validate(cut, scheduled=True)
    assert cut.arguments == program.arguments
    loops = [step for step in cut.steps if isinstance(step.op, Loop)]
    assert loops
    for step in loops:
        whole = [n for n, axis in zip(step.operands, step.op.sliced, strict=True) if axis is None]
        assert len(set(whole)) == len(whole)
        assert not [name for name in step.operands if "_use" in name]
