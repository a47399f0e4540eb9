"""Cores that stand at several sites: each use can be sliced by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.oracle import exact
from tncompiler.backends import emitter_of
from tncompiler.backends.source import load
from tncompiler.compiler import Compilation
from tncompiler.ir.passes.slicing import linked_axes
from tncompiler.ir.passes.uses import join_uses, part_uses
from tncompiler.ir.program import Loop, Map, Program
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


def ring_on_a_tensor(sites: int, bond: int, leg: int) -> tnc.Expr:
    """A uniform ring whose open legs meet one tensor: a number."""
    bonds, legs = (
        [tnc.Index(f"{name}{k}", size) for k in range(sites)]
        for name, size in (("b", bond), ("p", leg))
    )
    core = tnc.param("A", bonds[0], legs[0], bonds[1])
    uses = [core(bonds[k], legs[k], bonds[(k + 1) % sites]) for k in range(sites)]
    return tnc.contract(*uses, tnc.input("T", *legs), out=())


def test_the_gradient_of_a_uniform_core_is_sliced_along_a_bond() -> None:
    """Gradients of the uses are added whole; what makes them goes block by block."""
    expr = ring_on_a_tensor(4, 8, 4)
    rng = np.random.default_rng(0)
    core, other = rng.standard_normal((8, 4, 8)), rng.standard_normal((4,) * 4)
    free = tnc.compile(expr, framework="numpy", dtype="float64")
    most = free.compilation.plan({}, free._dtypes(), ("A", "T")).peak_memory
    limit = int(0.6 * most)
    options = tnc.PlanOptions(memory_limit=limit, recompute="always")
    tight = tnc.compile(expr, framework="numpy", dtype="float64", plan=options)
    plan = tight.compilation.plan({}, tight._dtypes(), ("A", "T"))
    assert plan.peak_memory <= limit
    assert any(name.startswith("b") for name in plan.sliced_indices)
    found = []
    for f in (free, tight):
        f.parameters["A"] = core
        value, pull = f.vjp(other)
        found.append((value, pull(np.ones_like(value))))
    (value, gradients), (tight_value, tight_gradients) = found
    assert np.allclose(tight_value, value, rtol=1e-10)
    for name in ("A", "T"):
        assert np.allclose(tight_gradients[name], gradients[name], rtol=1e-10)


def test_a_sum_that_ties_two_axes_is_made_of_whole_values() -> None:
    """a + aᵀ: the columns of one are the rows of the other, and yet a is made block by block."""
    i, j, k = tnc.indices("i j k", i=6, j=6, k=4)
    made = tnc.input("x", i, k) @ tnc.input("y", k, j)
    program = scheduled(made + made.rename({i: j, j: i}))
    links = linked_axes(program)
    product = program.steps[0].out.name
    assert links[product, 0] != links[product, 1]
    cut = apply_cuts(program, [Cut("x", 0, 2)])
    validate(cut, scheduled=True)
    kinds = [type(step.op) for step in cut.steps]
    assert kinds.index(Loop) < kinds.index(Map)  # the sum comes after the loop
    x, y = np.random.default_rng(0).standard_normal((2, 6, 4))
    run = load(emitter_of("numpy")(cut, "go")).run
    assert np.allclose(run(x, y.T)[0], x @ y.T + (x @ y.T).T)
