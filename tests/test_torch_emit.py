"""How the torch backend writes products that torch computes at very different speeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tncompiler.backends.torch.runtime import exp_below, long_bmm, long_mm

B, I, J = tnc.indices("b i j", b=5, i=6, j=7)
MATRICES, VECTORS = tnc.input("A", B, I, J), tnc.input("v", B, J)


@pytest.mark.parametrize("leaves", [(MATRICES, VECTORS), (VECTORS, MATRICES)], ids=["Av", "vA"])
def test_matrices_of_a_batch_meet_vectors_from_the_left(leaves: tuple[tnc.Expr, ...]) -> None:
    """bmm takes four times as long for a result of one column as for one of one row."""
    f = tnc.compile(tnc.contract(*leaves, out=(B, I)), backend="torch", dtype="float64")
    (line,) = (line for line in f.source(backend="torch").splitlines() if "bmm" in line)
    assert line.endswith("# (b, 1, i) = (b, 1, j) @ (b, j, i)")
    rng = np.random.default_rng(0)
    values = {"A": rng.standard_normal((5, 6, 7)), "v": rng.standard_normal((5, 7))}
    given = {name: torch.from_numpy(value).requires_grad_() for name, value in values.items()}
    result = f(**given)
    expected = np.einsum("bij,bj->bi", values["A"], values["v"])
    np.testing.assert_allclose(result.detach(), expected, rtol=1e-12)
    result.sum().backward()
    np.testing.assert_allclose(given["v"].grad, values["A"].sum(axis=1), rtol=1e-12)


def test_one_matrix_and_one_vector_stay_as_they_are() -> None:
    i, j = tnc.indices("i j", i=6, j=7)
    f = tnc.compile(tnc.input("A", i, j) @ tnc.input("v", j), backend="torch")
    assert "torch.mm(A, v.reshape(7, 1))" in f.source(backend="torch")


# ---------------------------------------------------------------------------- long sums


@pytest.mark.parametrize(
    ("batch", "length", "written"),
    [
        *[(0, 8192, True), (0, 2048, True), (0, 1024, False), (0, 8200, False), (0, 600, False)],
        *[(3, 8192, True), (3, 2048, False), (3, 8200, False)],
    ],
)
@pytest.mark.parametrize("sides", [(8, 32), (32, 8), (4, 4), (1, 5), (1, 1)])
def test_long_sums_are_written_out_as_the_helper_makes_them(
    batch: int, length: int, written: bool, sides: tuple[int, int]
) -> None:
    """where blocks are whole: one call instead of a dozen, and the same numbers"""
    i, j, k = tnc.Index("i", sides[0]), tnc.Index("j", sides[1]), tnc.Index("k", length)
    lead = [tnc.Index("n", batch)] if batch else []
    a, b = tnc.input("a", *lead, i, k), tnc.input("b", *lead, k, j)
    module = tnc.compile(tnc.contract(a, b, out=(*lead, i, j)), backend="torch")
    rng = np.random.default_rng(0)
    shapes = [tuple(index.size for index in leaf.indices) for leaf in (a, b)]
    given = [torch.from_numpy(rng.random(shape, np.float32)) for shape in shapes]
    text = module.source(backend="torch")
    assert ("long_" in text) is not (written and sides != (1, 1))
    helper, (x, y) = long_bmm if batch else long_mm, given
    expected = helper(x, y), helper(y.mT, x.mT).mT  # a plan may turn a product round
    with torch.no_grad():
        made = module(x, y)
    assert any(torch.equal(made, one) for one in expected)


# ---------------------------------------------------------------------------- exp below a maximum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_below_a_maximum_is_exp(dtype: torch.dtype) -> None:
    """but 0 where exp is below the normal numbers; not-a-numbers stay"""
    least = {torch.float32: -87.3, torch.float64: -708.3}[dtype]
    x = torch.tensor([0.0, -1.0, least, least - 1, -1e30, -torch.inf, torch.nan], dtype=dtype)
    found = exp_below(x)
    expected = torch.exp(x).masked_fill(x < least, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_a_softmax_takes_it_and_other_functions_do_not() -> None:
    scores, n = tnc.input("scores", B, J), tnc.Index("n", 4)
    weights = tnc.softmax(scores, over=J)
    edges = tnc.edge_softmax(scores, tnc.input("targets", J, dtype="int64"), n)
    for expr, count in ((weights, 1), (edges, 1), (tnc.exp(scores - scores.mean(J)), 0)):
        text = tnc.compile(expr, backend="torch").source()
        assert text.count(" = exp_below(") == count
        assert text.count("torch.exp(") == 1 - count


# ---------------------------------------------------------------------------- gelu's gradient


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_gelu_hands_its_gradient_to_the_library(runner: str) -> None:
    """one function of cotangent and operand, to the bound also where the slope crosses zero"""
    x = tnc.input("x", B, I)
    values = np.linspace(-6.0, 6.0, 30).reshape(5, 6).astype(np.float32)
    values[0, :2] = -0.7517916, 0.0  # gelu's smallest value
    ct = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    given = {"x": values}
    oracle.check_gradients(tnc.gelu(x), given, runner, "float32", cotangents=[ct], wrt=["x"])


def test_second_derivatives_of_gelu() -> None:
    x = tnc.input("x", B)
    gradient = tnc.grad(tnc.gelu(x).sum(), x)
    again = tnc.compile(
        tnc.grad((gradient * gradient).sum(), x), framework="numpy", dtype="float64"
    )
    own = torch.linspace(-3, 3, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(torch.nn.functional.gelu(own).sum(), own, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), own)
    np.testing.assert_allclose(again(own.detach().numpy()), second.numpy(), rtol=1e-10, atol=1e-12)


def test_gelus_gradient_of_unequal_shapes_and_many_axes() -> None:
    """what the library refuses: operands that broadcast, and more than 12 axes"""
    from tncompiler.backends.torch.runtime import gelu_gate

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ct = torch.randn(4, dtype=torch.float64)
    torch.nn.functional.gelu(x).backward(ct.expand(3, 4))
    torch.testing.assert_close(gelu_gate(ct, x.detach()), x.grad)
    many = torch.randn([2] * 14)
    flat = gelu_gate(many.reshape(-1), many.reshape(-1))
    assert torch.equal(gelu_gate(many, many), flat.reshape(many.shape))


def test_gelus_gradient_of_cotangents_with_gaps() -> None:
    """a diagonal, and every second column"""
    from tncompiler.backends.torch.runtime import gelu_gate

    x = torch.randn(3, 3)
    for ct in (torch.randn(3, 3, 3).diagonal(0, 1, 2), torch.randn(3, 5)[:, ::2]):
        assert torch.equal(gelu_gate(ct, x), gelu_gate(ct.clone(), x))
