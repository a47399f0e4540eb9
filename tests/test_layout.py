"""Axis orders chosen together: right values, fewer copies, never a longer predicted time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.large import as_if_large
from tests.networks import random_network
from tncompiler.backends.numpy.runtime import two_terms
from tncompiler.compiler import Compilation
from tncompiler.ir.matmul import is_product, matmul_form
from tncompiler.ir.passes import LAYOUT_PASSES, run_passes
from tncompiler.ir.program import Contract, Permute, Program
from tncompiler.planning.layout import lay_out
from tncompiler.planning.machine import as_machine
from tncompiler.planning.schedule import schedule
from tncompiler.planning.timing import program_us
from tncompiler.planning.ways import Ways

RATES = as_machine("reference").planning
LAYERS = {
    "TTMatrix": (tnc.formats.TTMatrix(rank=3), (3, 4, 2), (2, 4, 3)),
    "TT": (tnc.formats.TT(rank=3), (3, 4), (4, 5)),
    "Tucker": (tnc.formats.Tucker(rank=3), (4, 5), (3, 6)),
    "CP": (tnc.formats.CP(rank=5), (4, 5), (3, 6)),
    "HT": (tnc.formats.HT(rank=3), (4, 3), (3, 4)),
    "TensorRing": (tnc.formats.TensorRing(rank=3), (4, 5), (3, 6)),
    "Monarch": (tnc.formats.Monarch(rank=2), (4, 6), (6, 4)),
}


WIDE = {
    "TTMatrix": (tnc.formats.TTMatrix(rank=4), (8, 8, 12), (8, 16, 24)),
    "Kronecker": (tnc.formats.Kronecker(rank=8), (24, 32), (48, 64)),
    "TT": (tnc.formats.TT(rank=8), (8, 8, 12), (8, 16, 24)),
}


def layer(name: str, batch: int | None, layers: Mapping[str, Any] = LAYERS) -> Any:
    form, ins, outs = layers[name]
    weight = form.network(ins, outs, name="w")
    b = tnc.Index("b", batch) if batch else tnc.indices("b")[0]
    legs = weight.indices
    x = tnc.input("x", b, *legs[: len(ins)])
    return tnc.contract(x, weight, out=(b, *legs[len(ins) :]))


def chain(batch: int) -> Any:
    """A TT-matrix layer (4, 8, 8, 4) → (4, 8, 8, 4) of rank 8."""
    form = tnc.formats.TTMatrix(rank=8)
    weight = form.network((4, 8, 8, 4), (4, 8, 8, 4), name="w")
    b = tnc.Index("b", batch)
    x = tnc.input("x", b, *weight.indices[:4])
    return tnc.contract(x, weight, out=(b, *weight.indices[4:]))


def merged(expr: Any) -> Program:
    """The program in its planned order, with axes as they come."""
    compilation = Compilation(expr, None, {}, None)
    dtypes = compilation.default_dtypes("float32")
    _, orders = compilation.scheduled(dtypes, {})
    return compilation._merged(dtypes, {}, orders)


def copied(program: Program, size: int) -> int:
    """How many arrays of at least so many elements are copied in another order."""
    values = program.values
    return sum(
        int(np.prod(values[step.out.name].shape)) >= size
        for step in program.steps
        if isinstance(step.op, Permute)
    )


def test_a_chain_of_products_copies_nothing_large() -> None:
    program = merged(chain(256))
    plain, found = (
        run_passes(program, LAYOUT_PASSES, scheduled=True),
        lay_out(program, {}, Ways(RATES)),
    )
    assert copied(plain, 100_000) and not copied(found, 100_000)
    assert program_us(found, {}, RATES) < 0.9 * program_us(plain, {}, RATES)


def test_one_matrix_meets_all_matrices_of_a_batch() -> None:
    g = tnc.compile(chain(256), framework="numpy", seed=0)
    program = lay_out(merged(chain(256)), {}, Ways(RATES))
    forms = [
        matmul_form(step.op, dict(enumerate([8] * 99)), stacks=True)
        for step in program.steps
        if isinstance(step.op, Contract) and len(step.op.inputs) == 2
    ]
    assert any(form.outer for form in forms)
    f = tnc.compile(chain(256), backend="torch", seed=0)
    assert ".expand(256, -1, -1)" in f.source(backend="torch")
    x = np.random.default_rng(0).normal(size=(256, 4, 8, 8, 4)).astype(np.float32)
    with torch.no_grad():
        for name, parameter in f.named_parameters():
            parameter.copy_(torch.from_numpy(g.parameters[name]))
        np.testing.assert_allclose(f(torch.from_numpy(x)), g(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_found_layouts(name: str, batch: int | None) -> None:
    expr = layer(name, batch)
    reference = tnc.compile(expr, backend="torch", dtype="float64", seed=0)
    x = torch.randn(5, *LAYERS[name][1], dtype=torch.float64)
    wanted = _values(reference, x)
    with as_if_large():
        for backend in ("torch", "numpy"):
            module = tnc.compile(expr, backend=backend, dtype="float64", share=reference)
            for ours, theirs in zip(_values(module, x), wanted, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "batch"), [("TTMatrix", 256), ("Kronecker", 256), ("TT", 64)])
def test_every_copy_is_a_step(name: str, batch: int) -> None:
    """Nothing is copied inside a product, where it would be copied for each that reads it."""
    module = tnc.compile(layer(name, batch, WIDE), backend="torch")
    x = torch.randn(batch, *WIDE[name][1], requires_grad=True)
    leaves = (x, *module.parameters())
    cotangent = torch.randn_like(module(x))
    torch.autograd.grad(module(x), leaves, cotangent)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.autograd.grad(module(x), leaves, cotangent)
    code = module.source(part="forward") + module.source(part="backward")
    inside = [event for event in seen.events() if event.name == "aten::clone"]
    assert code.count("copied") + 1 >= len(inside) > 0  # one of the cotangent, for all who read it


def _values(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    given = x.clone().requires_grad_()
    value = module(given)
    return value, *torch.autograd.grad(value.square().sum(), (given, *module.parameters()))


@pytest.mark.parametrize("seed", range(15))
def test_the_search_only_improves(seed: int) -> None:
    case = random_network(9_000 + seed, dtype="float64")
    compilation = Compilation(case.outputs, None, case.given, None)
    nominal = compilation.nominal({k: case.sizes[k] for k in compilation.free_symbols})
    program, _ = schedule(
        compilation.logical(compilation.default_dtypes("float64")), nominal, compilation.options
    )
    sizes = {**compilation.binding, **nominal}
    plain = run_passes(program, LAYOUT_PASSES, scheduled=True)
    found = lay_out(program, sizes, Ways(RATES))
    assert program_us(found, sizes, RATES) <= 1.1 * program_us(plain, sizes, RATES) + 2.0


# ---------------------------------------------------------------------------- ways of one product


@pytest.mark.parametrize("output", list(permutations((0, 1, 3))))
def test_a_way_is_the_best_of_all_orders(output: tuple[int, ...]) -> None:
    """Brute force over the orders of both operands, each paid for with its copy; within a tenth.

    Of one output within a fifth: a copy is made for one product, not with an axis left outermost.
    """
    sizes, ways = (40, 6, 50, 70), Ways(RATES)
    given = Contract(((0, 2, 1), (3, 2)), output)
    best = ways.best(given, sizes, "float32")

    def free(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        read = ways._ranked(Contract((a, b), output), sizes, "float32")
        as_they_are = [way.time_us for way in read if (way.a, way.b) == (a, b)]
        return min(as_they_are, default=float("inf"))

    tried = [
        ways.permute_us((0, 2, 1), a, sizes, "float32")
        + ways.permute_us((3, 2), b, sizes, "float32")
        + free(a, b)
        for a in permutations((0, 1, 2))
        for b in permutations((2, 3))
    ]
    most = 1.2 if output == (1, 3, 0) else 1.1
    assert min(tried) <= best.time_us * (1 + 1e-9) and best.time_us <= most * min(tried)


def test_results_come_as_they_can_and_the_fastest_first() -> None:
    ways, sizes = Ways(RATES), (64, 8, 512)
    op = Contract(((0, 1), (1, 2)), (0, 2))
    assert set(ways.results(op, sizes, "float32")) == {(0, 2), (2, 0)}
    assert ways.results(op, sizes, "float32")[0] == ways.best(op, sizes, "float32").out == (0, 2)


def test_axes_of_size_one_move_for_nothing() -> None:
    ways = Ways(RATES)
    assert ways.permute_us((0, 1, 2), (1, 0, 2), (1, 64, 64), "float32") == 0.0
    assert ways.permute_us((0, 1, 2), (1, 0, 2), (2, 64, 64), "float32") > 0.0


# ---------------------------------------------------------------------------- outer products


def spread(size: int) -> tuple[Any, str]:
    """An outer product with a batch, indices in adverse orders, and its equation."""
    sizes = dict(a=size, b=5, c=size, d=size, e=size)
    index = {k: tnc.Index(k, n) for k, n in sizes.items()}
    x, y = (tnc.input(name, *(index[k] for k in name)) for name in ("abc", "dbe"))
    return tnc.contract(x, y, out=[index[k] for k in "ecbad"]), "abc,dbe->ecbad"


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int64"])
@pytest.mark.parametrize("size", [2, 10])
def test_outer_products_have_the_values_of_einsum(size: int, dtype: str) -> None:
    expr, equation = spread(size)
    rng = np.random.default_rng(size)
    arrays = [rng.integers(-9, 9, (size, 5, size)).astype(dtype) for _ in range(2)]
    expected = np.einsum(equation, *arrays)
    with as_if_large():
        found = tnc.compile(expr, framework="numpy")(*arrays)
        module = tnc.compile(expr, backend="torch")
        made = module(*map(torch.from_numpy, arrays)).numpy()
    for ours in (found, made):
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype == expected.dtype


def test_large_outer_products_are_products_of_matrices() -> None:
    large, small = (tnc.compile(spread(size)[0], framework="numpy") for size in (16, 2))
    assert "two_terms" in large.source() and "two_terms" not in small.source()
    op = Contract(((0, 1, 2), (3, 1, 4)), (4, 2, 1, 0, 3))
    sizes = (16, 5, 16, 16, 16)
    assert is_product(op, sizes, "float32") and not is_product(op, sizes, "int64")
    assert not is_product(op, (2, 5, 3, 256, 256), "float32")  # rows too few for BLAS
    assert not is_product(Contract(((0, 1), (0, 1)), (0, 1)), (256, 256), "float32")


def test_two_terms_multiply_exactly() -> None:
    a = np.array([[1.5], [np.inf], [np.nan], [-0.1]], np.float32)
    b = np.array([[3.0, -2.0, 0.0]], np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.matmul(*two_terms(a, b)), a * b)
    stacked = np.matmul(*two_terms(np.stack([a, 2 * a])[:, :1], b))
    assert stacked.shape == (2, 1, 3)
