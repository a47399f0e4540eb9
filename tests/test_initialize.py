"""Initialisation counts the actual norms of the inputs, and what long networks make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_stabilize import chain, mps
from tncompiler.ir.errors import ArgumentError

STABLE = tnc.PlanOptions(stabilize="exponent")
B, I, J, K = tnc.Index("b"), tnc.Index("i", 20), tnc.Index("j", 30), tnc.Index("k", 10)


def typical(values: np.ndarray) -> float:
    """The geometric mean of sizes, 1 for normal numbers of variance 1."""
    return float(np.exp(np.mean(np.log(np.abs(values))) + 0.6351814))


def test_a_classifier_of_784_sites_starts_at_order_one() -> None:
    """an MPS classifier of 784 sites on cos/sin features starts with outputs of order 1"""
    inputs = chain(784, 2, 32, 1.0).inputs()
    g = tnc.compile(mps(784, 16, 10), framework="numpy", seed=0)
    assert np.abs(g(*inputs)).max() < 1e-6  # without examples a site counts as twice as large
    g.reset_parameters(1, inputs=inputs)
    outputs = g(*inputs)
    assert np.isfinite(outputs).all()
    assert 0.3 < typical(outputs) < 3


@pytest.mark.parametrize("named", [True, False])
def test_a_torch_module_counts_norms(named: bool) -> None:
    inputs = [torch.from_numpy(x) for x in chain(40, 2, 16, 1.0).inputs()]
    f = tnc.compile(mps(40, 8), plan=STABLE, dtype="bfloat16" if named else None)
    inputs = [x.to(next(f.parameters()).dtype) for x in inputs]
    given = {f"x{k}": x for k, x in enumerate(inputs)} if named else inputs
    f.reset_parameters(torch.Generator().manual_seed(0), inputs=given)
    value, scale = f(*inputs)
    assert 0.2 < typical(value.detach().double().numpy() * 10.0 ** scale.numpy()) < 5


def test_small_and_large_inputs_and_layers_upon_layers() -> None:
    x, a, c = tnc.input("x", B, I), tnc.param("A", I, J), tnc.param("C", J, K)
    hidden = tnc.tanh(x @ a + tnc.param("bias", J))
    g = tnc.compile({"h": x @ a, "y": hidden @ c}, framework="numpy", seed=0)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0, 1e3):
        x_example = (size * rng.standard_normal((200, 20))).astype(np.float32)
        g.reset_parameters(0, inputs=[x_example])
        result = g(x_example)
        assert typical(result["h"]) == pytest.approx(1, rel=0.05)
        assert typical(result["y"]) == pytest.approx(1, rel=0.05)
        assert not np.any(g.parameters["bias"])


def test_shared_cores_and_given_values() -> None:
    """A core with two uses takes half of the factor at each; what has an init is left alone."""
    x, w = tnc.input("x", I), tnc.param("W", I, tnc.Index("i1", 20))
    fixed = tnc.param("F", J, I, init="ones")
    i2, i3 = tnc.Index("i2", 20), tnc.Index("i3", 20)
    expr = tnc.contract(x, w(I, i2), w(i2, i3), fixed(J, i3), out=(J,))
    g = tnc.compile(expr, framework="numpy", seed=0)
    example = 100 * np.ones(20, np.float32)
    g.reset_parameters(0, inputs={"x": example})
    assert typical(g(example)) == pytest.approx(1, rel=1e-3)
    assert (g.parameters["F"] == 1).all()


def test_examples_that_say_nothing_change_nothing() -> None:
    g = tnc.compile(tnc.input("x", B, I) @ tnc.param("A", I, J), framework="numpy")
    g.reset_parameters(0, inputs=[np.zeros((3, 20), np.float32)])
    assert np.isfinite(g.parameters["A"]).all()
    h = tnc.compile(tnc.input("x", B, I) @ tnc.param("A", I, J), framework="numpy", seed=0)
    first = h.parameters["A"]
    h.reset_parameters(1)
    assert not np.array_equal(first, h.parameters["A"])
    h.reset_parameters(0)
    assert np.array_equal(first, h.parameters["A"])
    with pytest.raises(ArgumentError):
        h.reset_parameters(0, inputs=[])
