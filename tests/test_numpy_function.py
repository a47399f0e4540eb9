"""The NumPy callable: parameters, vjp, value_and_grad, jvp, threads; torch is never loaded."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_semantics_helpers import crand, rand, same
from tncompiler.ir.errors import (
    ArgumentError,
    DTypeError,
    GradientError,
    ShapeError,
    TncError,
)

B, I, J = tnc.indices("b i j", i=3, j=4)
X, W, BIAS = tnc.input("x", B, I), tnc.param("W", I, J), tnc.param("bias", J)
Y = tnc.tanh(X @ W) + BIAS


def function(expr=Y, **options):
    return tnc.compile(expr, framework="numpy", **{"dtype": "float64", "seed": 0, **options})


def reference(x, w, bias):
    return np.tanh(x @ w) + bias


def test_values() -> None:
    g, x = function(), rand(5, 3)
    same(g(x), reference(x, g.parameters["W"], g.parameters["bias"]))
    same(g(x=x), g(x))


# Parameters ---------------------------------------------------------------------------------------


def test_parameters_is_a_mapping() -> None:
    """`g.parameters` (a dict of read-only arrays made from `seed=`, assignment replaces one)"""
    p = function().parameters
    assert list(p) == ["W", "bias"]
    assert {name: array.shape for name, array in p.items()} == {"W": (3, 4), "bias": (4,)}
    assert len(p) == 2
    assert "W" in p
    assert "z" not in p
    assert p.get("z") is None
    assert all(isinstance(array, np.ndarray) for array in p.values())
    assert "W" in repr(p)


def test_parameters_are_read_only() -> None:
    """a dict of read-only arrays"""
    p = function().parameters
    with pytest.raises(ValueError, match="read-only"):
        p["W"][0, 0] = 5
    with pytest.raises(ValueError):
        p["W"] += 1


def test_assignment_replaces_one() -> None:
    """assignment replaces one"""
    g, x, w = function(), rand(5, 3), rand(3, 4)
    g.parameters["W"] = w
    same(g(x), reference(x, w, g.parameters["bias"]))
    w[:] = 0
    assert g.parameters["W"].any()
    assert not g.parameters["W"].flags.writeable
    g.parameters["W"] = [[1] * 4] * 3
    same(g(x), np.tanh(x.sum(1))[:, None] + np.zeros(4))


def test_update_replaces_several() -> None:
    g = function()
    g.parameters.update(W=rand(3, 4), bias=rand(4))
    same(g(rand(2, 3)), reference(rand(2, 3), rand(3, 4), rand(4)))


def test_assignment_casts_to_the_declared_dtype() -> None:
    g = tnc.compile(Y, framework="numpy", seed=0)
    g.parameters["W"] = rand(3, 4)
    assert g.parameters["W"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("z", np.ones(3), ArgumentError),
        ("W", np.ones((4, 3)), ShapeError),
        ("W", np.ones(3), ShapeError),
        ("W", 1.0, ShapeError),
        ("W", np.ones((3, 4)) * 1j, DTypeError),
        ("W", np.full((3, 4), "a"), DTypeError),
        ("W", None, TncError),
        ("W", [[1], [1, 2]], TncError),
    ],
    ids=str,
)
def test_bad_assignments_raise(name, value, error) -> None:
    with pytest.raises(error):
        function().parameters[name] = value


def test_parameters_cannot_be_removed() -> None:
    p = function().parameters
    for action in (lambda: p.pop("W"), lambda: p.clear(), lambda: p.__delitem__("W")):
        with pytest.raises(ArgumentError):
            action()


def test_reading_an_unknown_parameter_raises() -> None:
    with pytest.raises((KeyError, ArgumentError), match="z"):
        _ = function().parameters["z"]


def test_seed_makes_the_parameters() -> None:
    """made from `seed=`"""
    same(function(seed=3).parameters["W"], function(seed=3).parameters["W"])
    assert not np.allclose(function(seed=3).parameters["W"], function(seed=4).parameters["W"])
    assert not np.allclose(function(seed=None).parameters["W"], function(seed=None).parameters["W"])


def test_seed_leaves_the_global_generator_alone() -> None:
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    function(seed=3)
    assert (np.random.get_state()[1] == state).all()


def test_parameters_override() -> None:
    """`g(x, parameters={…})`"""
    g, x, w = function(), rand(5, 3), rand(3, 4)
    before = g.parameters["W"].copy()
    same(g(x, parameters={"W": w}), reference(x, w, g.parameters["bias"]))
    same(g(x, parameters={"W": w, "bias": rand(4)}), reference(x, w, rand(4)))
    same(g.parameters["W"], before)
    same(g(x, parameters={}), g(x))
    _, pull = g.vjp(x, parameters={"W": w})
    same(pull(np.ones((5, 4)))["W"], x.T @ (1 - np.tanh(x @ w) ** 2))


@pytest.mark.parametrize(
    "parameters",
    [{"z": np.ones(3)}, {"W": np.ones((4, 3))}, {"W": np.ones((3, 4), "f")}, {"W": "x"}, 3],
    ids=str,
)
def test_bad_overrides_raise(parameters) -> None:
    with pytest.raises(TncError):
        function()(rand(5, 3), parameters=parameters)


# Derivatives --------------------------------------------------------------------------------------


def torch_pull(x, w, bias, ct):
    tensors = [torch.tensor(v, requires_grad=True) for v in (x, w, bias)]
    (torch.tanh(tensors[0] @ tensors[1]) + tensors[2]).backward(torch.tensor(ct))
    return [t.grad.numpy() for t in tensors]


def test_vjp() -> None:
    """`y, pull = g.vjp(x)` and `pull(dy)` → gradients by name for inputs and parameters"""
    g, x, ct = function(), rand(5, 3), rand(5, 4, seed=9)
    y, pull = g.vjp(x)
    same(y, g(x))
    gradients = pull(ct)
    assert set(gradients) == {"x", "W", "bias"}
    expected = torch_pull(x, g.parameters["W"], g.parameters["bias"], ct)
    for name, value in zip(("x", "W", "bias"), expected, strict=True):
        same(gradients[name], value)


def test_pull_may_be_called_again() -> None:
    g, x = function(), rand(5, 3)
    _, pull = g.vjp(x)
    first = {name: value.copy() for name, value in pull(np.ones((5, 4))).items()}
    twice = pull(np.full((5, 4), 2.0))
    again = pull(np.ones((5, 4)))
    for name, value in first.items():
        same(twice[name], 2 * value)
        same(again[name], value)


def test_pull_keeps_the_parameters_of_its_call() -> None:
    g, x = function(), rand(5, 3)
    _, pull = g.vjp(x)
    first = pull(np.ones((5, 4)))["x"].copy()
    g.parameters["W"] = rand(3, 4)
    same(pull(np.ones((5, 4)))["x"], first)


def test_pull_keeps_the_inputs_of_its_call() -> None:
    """Changing x in place after vjp is the caller's risk; another call is not."""
    g, x = function(), rand(5, 3)
    _, pull = g.vjp(x)
    first = pull(np.ones((5, 4)))["W"].copy()
    g.vjp(rand(5, 3, seed=5))[1](np.ones((5, 4)))
    same(pull(np.ones((5, 4)))["W"], first)


@pytest.mark.parametrize(
    "ct",
    [np.ones((4, 5)), np.ones(4), 1.0, np.ones((5, 4)) * 1j, None, "x", (np.ones((5, 4)),) * 2],
)
def test_bad_cotangents_raise(ct) -> None:
    _, pull = function().vjp(rand(5, 3))
    with pytest.raises(TncError):
        pull(ct)


def test_containers_of_cotangents() -> None:
    x = rand(5, 3)
    g = function({"y": Y, "s": (X * X).sum()})
    y, pull = g.vjp(x)
    assert set(y) == {"y", "s"}
    same(pull({"y": np.zeros((5, 4)), "s": 1.0})["x"], 2 * x)
    for bad in ({"y": np.zeros((5, 4))}, (np.zeros((5, 4)), 1.0), {"y": 0, "s": 1, "q": 2}):
        with pytest.raises(TncError):
            pull(bad)
    h = function((Y, (X * X).sum()))
    same(h.vjp(x)[1]((np.zeros((5, 4)), 1.0))["x"], 2 * x)


def test_value_and_grad() -> None:
    """`value, grads = g.value_and_grad(x)`"""
    g, x = function((Y * Y).sum()), rand(5, 3)
    value, gradients = g.value_and_grad(x)
    y = reference(x, g.parameters["W"], g.parameters["bias"])
    same(value, (y * y).sum())
    same(gradients["bias"], 2 * y.sum(0))
    assert set(gradients) == {"x", "W", "bias"}


@pytest.mark.parametrize("expr", [Y, (Y.sum(), Y.sum()), (Y.sum() * 1j)], ids=str)
def test_value_and_grad_of_no_real_scalar_raises(expr) -> None:
    g = function(expr, dtype="complex128" if expr is not Y else "float64")
    x = rand(5, 3).astype("complex128" if expr is not Y else "float64")
    with pytest.raises(GradientError):
        g.value_and_grad(x)


def test_gradient_descent_works() -> None:
    target = rand(5, 4, seed=3)
    g = function(((Y - tnc.input("t", B, J)) ** 2).mean())
    losses = []
    for _ in range(30):
        value, gradients = g.value_and_grad(rand(5, 3), target)
        losses.append(value)
        for name in g.parameters:
            g.parameters[name] = g.parameters[name] - 0.3 * gradients[name]
    assert losses[-1] < 0.7 * losses[0]


def test_jvp() -> None:
    """`g.jvp(x, tangents)`"""
    g, x, dx, dw = function(), rand(5, 3), rand(5, 3, seed=2), rand(3, 4, seed=3)
    w, bias = (torch.tensor(g.parameters[n]) for n in ("W", "bias"))
    _, expected = torch.func.jvp(
        lambda p, q: torch.tanh(p @ q) + bias,
        (torch.tensor(x), w),
        (torch.tensor(dx), torch.tensor(dw)),
    )
    for y, moved in (g.jvp(x, {"x": dx, "W": dw}), g.jvp(x, tangents={"W": dw, "x": dx})):
        same(y, g(x))
        same(moved, expected.numpy())


def test_jvp_and_vjp_agree() -> None:
    """forward-mode and reverse-mode agree: `<ct, J v> == <Jᵀ ct, v>`"""
    g, x, dx, ct = function(), rand(5, 3), rand(5, 3, seed=2), rand(5, 4, seed=4)
    _, moved = g.jvp(x, {"x": dx})
    same((ct * moved).sum(), (g.vjp(x)[1](ct)["x"] * dx).sum())


def test_jvp_of_containers() -> None:
    g = function({"a": X * 2, "b": X.sum()})
    _, moved = g.jvp(rand(5, 3), {"x": np.ones((5, 3))})
    same(moved["a"], np.full((5, 3), 2.0))
    same(moved["b"], 15.0)


@pytest.mark.parametrize(
    "tangents",
    [
        {},
        None,
        {"z": np.ones(3)},
        {"x": np.ones(3)},
        {"x": "text"},
        {"x": None},
        {"x": 1j * np.ones((5, 3))},
    ],
    ids=lambda t: str(t)[:20],
)
def test_bad_tangents_raise(tangents) -> None:
    with pytest.raises(TncError):
        function().jvp(rand(5, 3), tangents=tangents)


def test_complex_vjp() -> None:
    """for complex tensors torch's convention"""
    z, m = tnc.input("z", I), tnc.param("m", I, J)
    g = function(tnc.exp(z @ m), dtype="complex128")
    p, q, ct = crand(3), crand(3, 4, seed=1) / 3, crand(4, seed=2)
    tensors = [torch.tensor(v, requires_grad=True) for v in (p, q)]
    torch.exp(tensors[0] @ tensors[1]).backward(torch.tensor(ct))
    gradients = g.vjp(p, parameters={"m": q})[1](ct)
    same(gradients["z"], tensors[0].grad.resolve_conj().numpy())
    same(gradients["m"], tensors[1].grad.resolve_conj().numpy())


def test_integer_inputs_get_no_gradient() -> None:
    n = tnc.input("n", B, dtype="int64")
    g = function((n * X.sum(I)).sum())
    _, gradients = g.value_and_grad(np.array([1, 2]), rand(2, 3))
    assert set(gradients) == {"x"}
    same(gradients["x"], np.array([[1.0] * 3, [2.0] * 3]))


def test_unused_leaves_get_zeros() -> None:
    g = function(X.sum() + tnc.stop_gradient(BIAS).sum())
    _, gradients = g.value_and_grad(rand(5, 3))
    same(gradients["bias"], np.zeros(4))


# Isolation ----------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
import numpy as np
import tncompiler as tnc
import tncompiler.ir
assert "torch" not in sys.modules and "triton" not in sys.modules, "import"
b, i, j, r = tnc.indices("b i j r", i=3, j=4, r=2)
x = tnc.input("x", b, i)
y = tnc.layer_norm(tnc.gelu(x @ tnc.param("U", i, r) @ tnc.param("V", r, j)), over=j)
g = tnc.compile(y, framework="numpy", seed=0)
out, pull = g.vjp(np.ones((5, 3), "float32"))
pull(out)
g.jvp(np.ones((5, 3), "float32"), {"x": np.ones((5, 3), "float32")})
tnc.plan(y).to_json(); g.cost(); g.source(); g.source(part="backward")
tnc.from_json(tnc.grad(y.sum(), x).to_json())
assert "torch" not in sys.modules and "triton" not in sys.modules, "use"
print("clean", out.shape)
"""


def test_torch_is_never_loaded() -> None:
    """Importing it, and importing `tncompiler.ir`, must not import torch or triton"""
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "clean (5, 4)", done.stderr


def run_in_threads(work, count: int = 8) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_run_in_threads_reports_failures() -> None:
    def fail(number: int) -> None:
        assert number != 3

    assert len(run_in_threads(fail)) == 1


def test_calls_from_many_threads() -> None:
    """Safe to call from many threads (8 threads × 100 calls)."""
    g = function()
    w, bias = g.parameters["W"], g.parameters["bias"]

    def work(number: int) -> None:
        for call in range(100):
            n = (number * 7 + call) % 11
            x = rand(n, 3, seed=number)
            if call % 3:
                same(g(x), reference(x, w, bias))
            else:
                _, pull = g.vjp(x)
                same(pull(np.ones((n, 4)))["bias"], np.full(4, float(n)))

    assert run_in_threads(work) == []


def test_compiling_from_many_threads() -> None:
    def work(number: int) -> None:
        i = tnc.Index("i", number + 1)
        for _ in range(3):
            g = function((tnc.input("x", i) * tnc.param("w", i)).sum(), seed=number)
            same(g(np.ones(number + 1)), g.parameters["w"].sum())

    assert run_in_threads(work) == []


def test_results_do_not_alias_each_other() -> None:
    g = function(X * 2)
    first = g(rand(2, 3))
    kept = first.copy()
    g(rand(2, 3, seed=8))
    same(first, kept)
