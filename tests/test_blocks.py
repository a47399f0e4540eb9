"""Norms, dropout and users' own elementwise functions: torch agrees, masks follow from the seed."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

import tncompiler as tnc
from tests import oracle
from tncompiler.ir.errors import ArgumentError, FileFormatError, NameClash, UnknownIndex
from tncompiler.ir.functions.random import scramble
from tncompiler.ir.reference import evaluate

B, C, T = tnc.indices("b c t", b=6, c=3, t=8)
X = tnc.input("x", B, C, T)
ARRAY = np.random.default_rng(2).standard_normal((6, 3, 8))
W, SHIFT = tnc.input("w", C), tnc.input("s", C)
SCALES = {"w": np.array([1.0, 2.0, -1.0]), "s": np.array([0.5, 0.0, 1.0])}


# ---------------------------------------------------------------------------- norms


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_norms_are_torchs(runner: str) -> None:
    """rms_norm, layer_norm and batch_norm, in training and with running statistics"""
    x, weight, shift = (torch.tensor(a) for a in (ARRAY, SCALES["w"], SCALES["s"]))
    running = (tnc.input("mean", C), tnc.input("variance", C))
    given = {"mean": np.array([0.1, 0.2, 0.3]), "variance": np.array([1.0, 0.5, 2.0])}
    mean, variance = (torch.tensor(given[name]) for name in ("mean", "variance"))
    cases = [
        (tnc.rms_norm(X, T, eps=1e-5), functional.rms_norm(x, (8,), eps=1e-5)),
        (tnc.layer_norm(X, (C, T)), functional.layer_norm(x, (3, 8))),
        (
            tnc.batch_norm(X, (B, T), weight=W, bias=SHIFT),
            functional.batch_norm(x, None, None, weight, shift, training=True),
        ),
        (tnc.batch_norm(X, (B, T), running=running), functional.batch_norm(x, mean, variance)),
    ]
    for expr, expected in cases:
        arrays = {"x": ARRAY, **SCALES, **given}
        own = {leaf.name: arrays[leaf.name] for leaf in expr.leaves}
        (value,) = oracle.Runner((expr,), runner, "float64", {}).forward(own)
        assert np.allclose(value, expected.numpy(), atol=1e-12)


def test_moments_are_those_of_all_positions() -> None:
    mean, variance = tnc.moments(X, (B, T))
    assert np.allclose(evaluate(mean, {"x": ARRAY}).value, ARRAY.mean((0, 2)))
    assert np.allclose(evaluate(variance, {"x": ARRAY}).value, ARRAY.var((0, 2)))
    with pytest.raises(UnknownIndex):
        tnc.rms_norm(X, "zz")


# ---------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_the_same_seed_drops_the_same(runner: str) -> None:
    """on every backend, forward and backward; what is kept is scaled"""
    seed = tnc.input("seed", dtype="int64")
    expr = tnc.dropout(X, 0.25, seed)
    compiled = oracle.Runner((expr,), runner, "float32", {})
    arrays = {"x": np.ones((6, 3, 8), np.float32), "seed": np.asarray(5)}
    reference = evaluate(expr, arrays).value
    assert set(np.unique(reference)) == {0.0, 1 / 0.75}
    (value,) = compiled.forward(arrays)
    assert np.allclose(value, reference)
    (value,), found = compiled.gradients(arrays, [arrays["x"]], ("x",))
    assert np.array_equal(found["x"] == 0, value == 0)
    (other,) = compiled.forward({**arrays, "seed": np.asarray(6)})
    assert not np.array_equal(other, value)
    (off,) = compiled.forward({**arrays, "seed": np.asarray(-1)})
    assert np.array_equal(off, arrays["x"])


def test_chances_are_as_said() -> None:
    """of a million elements; neighbours along each axis and in the seed are independent"""
    n, m = tnc.indices("n m", n=1000, m=1000)
    x, seed = tnc.input("x", n, m), tnc.input("seed", dtype="int64")
    f = tnc.compile(tnc.dropout(x, 0.3, seed), framework="numpy")
    ones = np.ones((1000, 1000), np.float32)
    kept, next_kept = f(x=ones, seed=1) > 0, f(x=ones, seed=2) > 0
    sigma = np.sqrt(0.3 * 0.7 / 1e6)
    assert abs(kept.mean() - 0.7) < 5 * sigma
    for a, b in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept, next_kept)):
        assert abs((a & b).mean() - 0.49) < 6 * sigma
    assert abs(kept.mean(0).std() / np.sqrt(0.21 / 1000) - 1) < 0.15
    assert abs(kept.mean(1).std() / np.sqrt(0.21 / 1000) - 1) < 0.15


def test_scrambled_numbers_are_even() -> None:
    """each of 32 bits is one half of the time, for small states and positions too"""
    states, positions = np.arange(-50, 50)[:, None], np.arange(1000)
    bits = scramble(states, positions)[..., None] >> np.arange(32) & 1
    assert np.abs(bits.mean((0, 1)) - 0.5).max() < 0.01
    assert np.abs(bits.mean(1) - 0.5).max() < 0.1
    assert bits.min() >= 0


def test_modules_fill_in_the_seed() -> None:
    """training: by torch's generator; evaluation: off; a seed that is given is used"""
    z = tnc.input("z", B, C, T)
    module = tnc.compile(tnc.dropout(X, 0.5) + tnc.dropout(X * 1.0, 0.5) * 0.0 + z)
    assert module.inputs == ("x", "z", "dropout_seed")
    x, zero = torch.ones(6, 3, 8), torch.zeros(6, 3, 8)
    torch.manual_seed(0)
    first, second = module(x, zero), module(x, zero)
    torch.manual_seed(0)
    assert torch.equal(module(x, zero), first)
    assert not torch.equal(first, second)
    fixed = module(x, zero, dropout_seed=torch.tensor(3))
    assert torch.equal(fixed, module(x, zero, torch.tensor(3)))
    module.eval()
    assert torch.equal(module(x, zero), x)
    function = tnc.compile(tnc.dropout(X, 0.5), framework="numpy")
    assert np.array_equal(function(x.numpy()), x.numpy())


def test_dropouts_of_one_network_differ() -> None:
    seed = tnc.input("seed", dtype="int64")
    both = (tnc.dropout(X, 0.5, seed), tnc.dropout(X + 0.0, 0.5, seed))
    f = tnc.compile(both, framework="numpy")
    first, second = f(x=np.ones((6, 3, 8), np.float32), seed=1)
    assert not np.array_equal(first, second)
    salted = (tnc.dropout(X, 0.5, seed, salt=1), tnc.dropout(X + 0.0, 0.5, seed, salt=1))
    first, second = tnc.compile(salted, framework="numpy")(x=np.ones((6, 3, 8)), seed=1)
    assert np.array_equal(first, second)


def test_bad_dropout() -> None:
    for p in (-0.1, 1.5, "half", float("nan")):
        with pytest.raises(ArgumentError, match="probability"):
            tnc.dropout(X, p)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="the seed has the indices"):
        tnc.dropout(X, 0.5, tnc.input("seed", B, dtype="int64"))


# ---------------------------------------------------------------------------- users' functions

mish = tnc.elementwise(
    "mish",
    lambda x: x * tnc.tanh(tnc.softplus(x)),
    lambda x: tnc.tanh(tnc.softplus(x)) + x * tnc.sigmoid(x) * (1 - tnc.tanh(tnc.softplus(x)) ** 2),
)
huber = tnc.elementwise(
    "huber",
    lambda a, b: tnc.where(tnc.abs(a - b) < 1, (a - b) * (a - b) / 2, tnc.abs(a - b) - 0.5),
    lambda a, b: (tnc.maximum(tnc.minimum(a - b, 1), -1), None),
)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_a_function_of_ones_own(runner: str) -> None:
    x = torch.tensor(ARRAY, requires_grad=True)
    expected = functional.mish(x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    compiled = oracle.Runner((mish(X),), runner, "float64", {})
    (value,), found = compiled.gradients({"x": ARRAY}, [np.ones_like(ARRAY)], ("x",))
    assert np.allclose(value, expected.detach().numpy(), atol=1e-12)
    assert np.allclose(found["x"], wanted.numpy(), atol=1e-12)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_two_operands_one_derivative(runner: str) -> None:
    """the second operand broadcasts and gets no gradient; the derivative is the one given"""
    target = tnc.input("y", C)
    arrays = {"x": ARRAY, "y": np.array([0.0, 1.0, -1.0])}
    x = torch.tensor(ARRAY, requires_grad=True)
    wide = torch.tensor(arrays["y"])[:, None].expand_as(x)
    expected = functional.huber_loss(x, wide, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    compiled = oracle.Runner((huber(X, target),), runner, "float64", {})
    (value,), found = compiled.gradients(arrays, [np.ones_like(ARRAY)], ("x", "y"))
    assert np.allclose(value, expected.detach().numpy())
    assert np.allclose(found["x"], wanted.numpy())
    assert not found["y"].any()


def test_derivatives_that_are_not_those_of_the_function() -> None:
    """a straight-through estimator; and the second derivative is that of the first one given"""
    sharp = tnc.elementwise("sharp", lambda x: tnc.sign(x), lambda x: 1 - tnc.tanh(x) * tnc.tanh(x))
    gradient = tnc.grad(sharp(X).sum(), X)
    assert np.allclose(evaluate(gradient, {"x": ARRAY}).value, 1 - np.tanh(ARRAY) ** 2)
    second = evaluate(tnc.grad(gradient.sum(), X), {"x": ARRAY}).value
    tanh = np.tanh(ARRAY)
    assert np.allclose(second, -2 * tanh * (1 - tanh**2))
    f = tnc.compile(tnc.elementwise("seven", lambda x: 7.0, lambda x: 0.0)(X), framework="numpy")
    assert np.array_equal(f(ARRAY.astype(np.float32)), np.full((6, 3, 8), 7, np.float32))


def test_functions_are_saved_by_name() -> None:
    expr = mish(X) + 1
    assert tnc.from_json(expr.to_json()) == expr
    module = tnc.compile(expr)
    x = torch.tensor(ARRAY, dtype=torch.float32)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    code = "import sys, tncompiler as tnc\ntnc.from_json(sys.stdin.read())"
    other = subprocess.run(
        [sys.executable, "-c", code], input=expr.to_json(), capture_output=True, text=True
    )
    assert FileFormatError.__name__ in other.stderr  # unknown there: nothing is executed
    assert "no elementwise function 'mish'" in other.stderr


def test_bad_functions() -> None:
    with pytest.raises(NameClash, match="another elementwise function 'tanh'"):
        tnc.elementwise("tanh", lambda x: x, lambda x: 1.0)
    tnc.elementwise("twice_the_same", lambda x: 2 * x, lambda x: 2.0)
    tnc.elementwise("twice_the_same", lambda x: 2 * x, lambda x: 2.0)
    with pytest.raises(NameClash, match="another elementwise function 'twice_the_same'"):
        tnc.elementwise("twice_the_same", lambda x: 3 * x, lambda x: 3.0)
    with pytest.raises(ArgumentError, match="2 operands and 1 derivatives"):
        tnc.elementwise("lacking", lambda x, y: x * y, lambda x, y: y)
    with pytest.raises(ArgumentError, match="Leaf is no function of numbers"):
        tnc.elementwise("captured", lambda x: x * tnc.input("scale"), lambda x: 1.0)
    with pytest.raises(ArgumentError, match="is no function of numbers"):
        tnc.elementwise("cast", lambda x: x.astype("float64"), lambda x: 1.0)
    with pytest.raises(ArgumentError, match="takes two callables"):
        tnc.elementwise("no_derivative", lambda x: x, None)  # type: ignore[arg-type]
