"""Gradients as expressions: grad, jvp, environment; torch.autograd is the oracle."""

import contextlib

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_semantics_helpers import check, crand, evaluate, rand, same
from tncompiler.ir.errors import GradientError, TncError

I, J, K = tnc.indices("i j k", i=2, j=3, k=4)
A, B, X = tnc.param("A", I, J), tnc.param("B", J, K), tnc.input("x", I)
DATA = {"A": rand(2, 3), "B": rand(3, 4, seed=1), "x": rand(2, seed=2)}
COMPLEX = {"A": crand(2, 3), "B": crand(3, 4, seed=1), "x": crand(2, seed=2)}


def torch_gradients(function, data, names):
    """Gradients by autograd of a real scalar function of tensors by name."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in data.items()}
    function(tensors).backward()
    return [tensors[name].grad.numpy() for name in names]


def twice(b):
    """B and 2 B, one below the other."""
    part = b.rename({J: tnc.Index("n", 3)})
    return tnc.concat([part, 2 * part], tnc.Index("n", 6))


CASES = {
    "linear": (lambda a, b, x: (x @ a @ b).sum(), lambda t: (t["x"] @ t["A"] @ t["B"]).sum()),
    "square": (
        lambda a, b, x: ((x @ a @ b) * (x @ a @ b)).sum(),
        lambda t: (t["x"] @ t["A"] @ t["B"]).square().sum(),
    ),
    "tanh": (
        lambda a, b, x: tnc.tanh(tnc.tanh(x @ a) @ b).sum(),
        lambda t: torch.tanh(torch.tanh(t["x"] @ t["A"]) @ t["B"]).sum(),
    ),
    "softmax": (
        lambda a, b, x: tnc.log_softmax(x @ a @ b, over=K).select(K, 2),
        lambda t: torch.log_softmax(t["x"] @ t["A"] @ t["B"], 0)[2],
    ),
    "norm": (
        lambda a, b, x: (tnc.layer_norm(a @ b, over=K) * x).max(),
        lambda t: (torch.nn.functional.layer_norm(t["A"] @ t["B"], (4,)) * t["x"][:, None]).max(),
    ),
    "quotient": (
        lambda a, b, x: (x / (a * a + 1)).mean() + b.sum(),
        lambda t: (t["x"][:, None] / (t["A"] ** 2 + 1)).mean() + t["B"].sum(),
    ),
    "shapes": (
        lambda a, b, x: (
            a.merge((I, J), tnc.Index("m", 6))
            .slice("m", 1, 5)
            .split("m", (tnc.Index("p", 2), tnc.Index("q", 2)))
            .max("p")
            .sum("q")
            * b.pad(K, 1, 0).sum()
            * x.sum()
        ),
        lambda t: t["A"].reshape(6)[1:5].reshape(2, 2).amax(0).sum() * t["B"].sum() * t["x"].sum(),
    ),
    "concat": (
        lambda a, b, x: tnc.sin(twice(b)).sum() * (a.sum() + x.sum()),
        lambda t: (torch.cat([t["B"], 2 * t["B"]]).sin().sum()) * (t["A"].sum() + t["x"].sum()),
    ),
    "stack": (
        lambda a, b, x: (tnc.stack([a.sum(J), x], tnc.Index("s", 2)).max("s")).sum() * b.sum(),
        lambda t: torch.stack([t["A"].sum(1), t["x"]]).amax(0).sum() * t["B"].sum(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_grad_equals_torch(name: str) -> None:
    """It equals torch's `.grad`"""
    ours, theirs = CASES[name]
    expr = ours(A, B, X)
    gradients = tnc.grad(expr, (A, B, X))
    expected = torch_gradients(theirs, DATA, ["A", "B", "x"])
    for gradient, leaf, value in zip(gradients, (A, B, X), expected, strict=True):
        assert gradient.indices == leaf.indices
        check(gradient, value, **DATA)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_compiled_backward_equals_torch(name: str, backend: str) -> None:
    """The compiled backward pass gives torch's `.grad` too."""
    ours, theirs = CASES[name]
    f = tnc.compile(ours(A, B, X), backend=backend, dtype="float64")
    with torch.no_grad():
        f.A.copy_(torch.tensor(DATA["A"]))
        f.B.copy_(torch.tensor(DATA["B"]))
    x = torch.tensor(DATA["x"], requires_grad=True)
    f(x).backward()
    expected = torch_gradients(theirs, DATA, ["A", "B", "x"])
    for got, value in zip((f.A.grad, f.B.grad, x.grad), expected, strict=True):
        same(got, value)


COMPLEX_CASES = {
    "abs2": (
        lambda a, b, x: ((x @ a @ b) * (x @ a @ b).conj()).sum().real,
        lambda t: (t["x"] @ t["A"] @ t["B"]).abs().square().sum(),
    ),
    "real": (
        lambda a, b, x: (x @ a @ b).sum().real,
        lambda t: (t["x"] @ t["A"] @ t["B"]).sum().real,
    ),
    "imag": (
        lambda a, b, x: (x @ a @ b).sum().imag,
        lambda t: (t["x"] @ t["A"] @ t["B"]).sum().imag,
    ),
    "abs": (
        lambda a, b, x: (x @ a @ b).abs().sum(),
        lambda t: (t["x"] @ t["A"] @ t["B"]).abs().sum(),
    ),
    "exp": (
        lambda a, b, x: tnc.exp(tnc.tanh(x @ a) @ b).sum().imag,
        lambda t: torch.exp(torch.tanh(t["x"] @ t["A"]) @ t["B"]).sum().imag,
    ),
    "div": (
        lambda a, b, x: (x / a).sum().real + (b.conj() / (b * b + 3)).sum().imag,
        lambda t: (
            (t["x"][:, None] / t["A"]).sum().real + (t["B"].conj() / (t["B"] ** 2 + 3)).sum().imag
        ),
    ),
}


def complex_leaves():
    return tuple(
        make(name, *indices, dtype="complex128")
        for make, name, indices in (
            (tnc.param, "A", (I, J)),
            (tnc.param, "B", (J, K)),
            (tnc.input, "x", (I,)),
        )
    )


@pytest.mark.parametrize("declared", [True, False], ids=["complex128", "default"])
@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_complex_grad_equals_torch(name: str, declared: bool) -> None:
    """(for real L: ∂L/∂Re + i·∂L/∂Im)"""
    ours, theirs = COMPLEX_CASES[name]
    leaves = complex_leaves() if declared else (A, B, X)
    gradients = tnc.grad(ours(*leaves), leaves)
    expected = torch_gradients(theirs, COMPLEX, ["A", "B", "x"])
    for gradient, value in zip(gradients, expected, strict=True):
        check(gradient, value, **COMPLEX)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_compiled_complex_backward_equals_torch(name: str, backend: str) -> None:
    """for complex tensors torch's convention (conjugate Wirtinger)"""
    ours, theirs = COMPLEX_CASES[name]
    f = tnc.compile(ours(*complex_leaves()), backend=backend)
    with torch.no_grad():
        f.A.copy_(torch.tensor(COMPLEX["A"]))
        f.B.copy_(torch.tensor(COMPLEX["B"]))
    x = torch.tensor(COMPLEX["x"], requires_grad=True)
    f(x).backward()
    expected = torch_gradients(theirs, COMPLEX, ["A", "B", "x"])
    for got, value in zip((f.A.grad, f.B.grad, x.grad), expected, strict=True):
        same(got.resolve_conj(), value)


def test_real_leaves_in_a_complex_expression_have_real_gradients() -> None:
    """It equals torch's `.grad`"""
    w = tnc.param("w", I, dtype="float64")
    z = tnc.input("z", I, dtype="complex128")
    expr = ((w * z).sum() * (w * z).sum().conj()).real
    data = {"w": rand(2), "z": crand(2)}
    expected = torch_gradients(lambda t: (t["w"] * t["z"]).sum().abs().square(), data, ["w", "z"])
    for leaf, value in zip((w, z), expected, strict=True):
        got = evaluate(tnc.grad(expr, leaf), data)
        assert got.dtype == value.dtype
        same(got, value)


def test_the_result_has_the_declared_indices_of_wrt() -> None:
    """the result has wrt's declared indices"""
    expr = (A.transpose(J, I) * tnc.input("y", J, I)).sum()
    assert tnc.grad(expr, A).indices == (I, J)


def test_a_shared_parameter_adds_over_its_uses() -> None:
    """Its gradients add over all uses."""
    i, j, k = tnc.indices("i j k", size=3)
    M = tnc.param("M", i, j)
    m = rand(3, 3)
    expr = (M @ M(j, k)).sum()
    (expected,) = torch_gradients(lambda t: (t["M"] @ t["M"]).sum(), {"M": m}, ["M"])
    check(tnc.grad(expr, M), expected, M=m)
    gradient = tnc.grad(expr, M(j, k))
    check(gradient, expected, M=m)
    assert gradient.indices == (j, k)


def test_a_cotangent_has_the_indices_of_the_expression() -> None:
    """a cotangent with expr's indices"""
    v = tnc.input("v", K)
    data = {**DATA, "v": rand(4, seed=7)}
    expr = tnc.tanh(X @ A @ B)
    expected = torch_gradients(
        lambda t: (torch.tanh(t["x"] @ t["A"] @ t["B"]) * t["v"].detach()).sum(), data, ["A", "B"]
    )
    for gradient, value in zip(tnc.grad(expr, (A, B), cotangent=v), expected, strict=True):
        check(gradient, value, **data)


def test_a_complex_cotangent() -> None:
    """a cotangent with expr's indices; the vector-Jacobian product of torch"""
    a, b, x = complex_leaves()
    v = tnc.input("v", K, dtype="complex128")
    data = {**COMPLEX, "v": crand(4, seed=7)}
    t = {n: torch.tensor(z, requires_grad=True) for n, z in COMPLEX.items()}
    (t["x"] @ t["A"] @ t["B"]).sin().backward(torch.tensor(data["v"]))
    check(tnc.grad(tnc.sin(x @ a @ b), a, cotangent=v), t["A"].grad.numpy(), **data)


def test_a_cotangent_in_another_order() -> None:
    M, V = tnc.input("M", I, J), tnc.input("V", J, I)
    m, v = rand(2, 3), rand(3, 2)
    check(tnc.grad(M * M, M, cotangent=V), 2 * m * v.T, M=m, V=v)


@pytest.mark.parametrize("cotangent", [X, tnc.ones(I, J), 1.0])
def test_a_cotangent_of_other_indices_raises(cotangent) -> None:
    """a cotangent with expr's indices"""
    with pytest.raises(GradientError, match="cotangent"):
        tnc.grad(A @ B, A, cotangent=cotangent)


def test_a_tuple_of_wrt_gives_a_tuple() -> None:
    """a tuple of wrt gives a tuple"""
    expr = (X @ A).sum()
    assert isinstance(tnc.grad(expr, (A, X)), tuple)
    assert len(tnc.grad(expr, (A,))) == 1
    assert tnc.grad(expr, A) == tnc.grad(expr, (A,))[0]
    assert tnc.grad(expr, ()) == ()


def test_a_list_of_wrt_gives_gradients_or_a_clear_error() -> None:
    with contextlib.suppress(GradientError):
        assert len(tnc.grad((X @ A).sum(), [A, X])) == 2


def test_a_non_scalar_without_cotangent_raises() -> None:
    """`grad(expr, wrt, cotangent=None)`: a scalar expr, or a cotangent"""
    with pytest.raises(GradientError, match=r"no scalar.*\(i:2, k:4\)"):
        tnc.grad(A @ B, A)


def test_a_non_real_scalar_without_cotangent_raises() -> None:
    """a non-real scalar without cotangent raises"""
    a, b, x = complex_leaves()
    with pytest.raises(GradientError, match="not real"):
        tnc.grad((x @ a @ b).sum(), a)
    assert tnc.grad((x @ a @ b).sum().real, a).indices == (I, J)


def test_a_default_dtype_that_turns_out_complex_raises() -> None:
    """a non-real scalar without cotangent raises; also one that is only known when compiled"""
    with pytest.raises(TncError):
        evaluate(tnc.grad((X @ A).sum() * 1j, A), COMPLEX)


def test_a_leaf_goes_by_its_name_too() -> None:
    i, j = tnc.indices("i j", i=2, j=3)
    x, W = tnc.input("x", i), tnc.param("W", i, j)
    loss = (x * W).sum(i, j)
    assert tnc.grad(loss, "W").digest == tnc.grad(loss, W).digest
    assert [g.digest for g in tnc.grad(loss, ("x", W))] == [
        g.digest for g in tnc.grad(loss, (x, W))
    ]
    assert tnc.environment(loss, "W").digest == tnc.environment(loss, W).digest
    assert tnc.jvp(loss, {"x": x}).digest == tnc.jvp(loss, {x: x}).digest
    with pytest.raises(GradientError, match=r"'Q' is no input(.|\n)*the leaves are: x, W"):
        tnc.grad(loss, "Q")


def test_a_leaf_that_does_not_appear_raises() -> None:
    with pytest.raises(GradientError, match="'x'"):
        tnc.grad(A.sum(), X)
    with pytest.raises(GradientError):
        tnc.grad(A.sum(), "X")
    with pytest.raises(GradientError):
        tnc.grad(A.sum(), A * 2)
    with pytest.raises(TncError):
        tnc.grad(A.sum(), tnc.param("A", J, K))


def test_a_leaf_without_influence_has_zero_gradient() -> None:
    check(tnc.grad((A > 0).astype("float64").sum() + X.sum(), A), np.zeros((2, 3)), **DATA)
    check(tnc.grad(tnc.stop_gradient(A).sum(), A), np.zeros((2, 3)), **DATA)


def test_integer_leaves_have_no_gradient() -> None:
    n = tnc.input("n", I, dtype="int64")
    with pytest.raises(TncError):
        tnc.grad((n * X).sum(), n)


def test_second_derivatives_are_gradients_of_inner_products() -> None:
    """Second derivatives are gradients of inner products."""
    v = tnc.input("v", I, J)
    expr = tnc.tanh(X @ A @ B).sum()
    hessian_vector = tnc.grad(tnc.contract(tnc.grad(expr, A), v, out=()), A)
    data = {**DATA, "v": rand(2, 3, seed=5)}
    t = {n: torch.tensor(z, requires_grad=True) for n, z in data.items()}
    out = torch.tanh(t["x"] @ t["A"] @ t["B"]).sum()
    (first,) = torch.autograd.grad(out, t["A"], create_graph=True)
    (second,) = torch.autograd.grad((first * t["v"]).sum(), t["A"])
    check(hessian_vector, second.numpy(), **data)


def test_third_derivatives() -> None:
    x = tnc.input("x", I)
    expr = tnc.sin(x).sum()
    for _ in range(3):
        expr = tnc.grad(expr, x).sum()
    check(expr, -np.cos(DATA["x"]).sum(), x=DATA["x"])


def test_gradients_compile_together_with_the_value() -> None:
    expr = tnc.tanh(X @ A @ B).sum()
    value, gradient = evaluate((expr, tnc.grad(expr, A)), DATA)
    same(value, np.tanh(DATA["x"] @ DATA["A"] @ DATA["B"]).sum())
    assert gradient.shape == (2, 3)


# jvp ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_jvp_equals_torch(name: str) -> None:
    """`tnc.jvp(expr, {leaf: tangent})`"""
    ours, theirs = CASES[name]
    moved = tnc.jvp(ours(A, B, X), {A: tnc.input("dA", I, J), X: tnc.input("dx", I)})
    da, dx = rand(2, 3, seed=11), rand(2, seed=12)
    t = {n: torch.tensor(z) for n, z in DATA.items()}
    _, expected = torch.func.jvp(
        lambda a, x: theirs({**t, "A": a, "x": x}),
        (t["A"], t["x"]),
        (torch.tensor(da), torch.tensor(dx)),
    )
    check(moved, expected.numpy(), dA=da, dx=dx, **DATA)


def test_jvp_of_a_vector_keeps_its_indices() -> None:
    expr = tnc.tanh(X @ A)
    moved = tnc.jvp(expr, {X: tnc.ones(I)})
    assert moved.indices == expr.indices
    a, x = DATA["A"], DATA["x"]
    check(moved, (1 - np.tanh(x @ a) ** 2) * a.sum(0), A=a, x=x)


def test_jvp_and_vjp_agree() -> None:
    """`<ct, J v> == <Jᵀ ct, v>`"""
    v, ct = tnc.input("v", I, J), tnc.input("ct", K)
    expr = tnc.softmax(X @ A @ B, over=K)
    forward = tnc.contract(tnc.jvp(expr, {A: v}), ct, out=())
    reverse = tnc.contract(tnc.grad(expr, A, cotangent=ct), v, out=())
    data = {**DATA, "v": rand(2, 3, seed=5), "ct": rand(4, seed=6)}
    same(evaluate(forward, data), evaluate(reverse, data))


def test_jvp_of_complex_expressions() -> None:
    a, b, x = complex_leaves()
    da = tnc.input("dA", I, J, dtype="complex128")
    moved = tnc.jvp((x @ a @ b).conj(), {a: da})
    data = {**COMPLEX, "dA": crand(2, 3, seed=5)}
    check(moved, (data["x"] @ data["dA"] @ data["B"]).conj(), **data)


def test_bad_tangents_raise() -> None:
    with pytest.raises(GradientError):
        tnc.jvp(A.sum(), {A: X})
    with pytest.raises(GradientError):
        tnc.jvp(A.sum(), {X: X})
    with pytest.raises(GradientError):
        tnc.jvp(A.sum(), {"nobody": A})


def test_jvp_without_tangents() -> None:
    with contextlib.suppress(TncError):
        check(tnc.jvp(A.sum(), {}), 0.0, **DATA)


# environment --------------------------------------------------------------------------------------


def test_an_environment_contracted_back_gives_the_expression() -> None:
    """`tnc.environment(expr, occurrence)` is the network with that occurrence taken out"""
    expr = tnc.contract(X, A, B, out=(K,))
    for leaf in (X, A, B):
        environment = tnc.environment(expr, leaf)
        back = tnc.contract(environment, leaf, out=(K,))
        same(evaluate(back, DATA), evaluate(expr, DATA))
        assert leaf.name not in [own.name for own in environment.leaves]


def test_the_environment_of_a_scalar() -> None:
    expr = X @ A @ B @ tnc.input("y", K)
    environment = tnc.environment(expr, A)
    assert environment.indices == (I, J)
    y = rand(4, seed=4)
    check(environment, np.outer(DATA["x"], DATA["B"] @ y), x=DATA["x"], B=DATA["B"], y=y)


def test_an_environment_is_holomorphic() -> None:
    """(holomorphic, no conjugate)"""
    a, _b, x = complex_leaves()
    environment = tnc.environment(x @ a, a)
    check(environment * tnc.ones(J), np.outer(COMPLEX["x"], np.ones(3)), x=COMPLEX["x"])


def test_an_environment_keeps_scalar_factors() -> None:
    expr = 3.0 * (X @ A)
    back = tnc.contract(tnc.environment(expr, A), A, out=(J,))
    check(back, 3 * DATA["x"] @ DATA["A"], A=DATA["A"], x=DATA["x"])


def test_an_environment_in_a_batch() -> None:
    b = tnc.Index("b")
    x = tnc.input("x", b, I)
    expr = x @ A @ B
    environment = tnc.environment(expr, A)
    data = {"A": DATA["A"], "B": DATA["B"], "x": rand(5, 2)}
    same(
        evaluate(tnc.contract(environment, A, out=(b, K)), data), data["x"] @ data["A"] @ data["B"]
    )


def test_an_occurrence_is_named_by_its_indices() -> None:
    i, j, k = tnc.indices("i j k", size=3)
    M = tnc.param("M", i, j)
    m = rand(3, 3)
    expr = tnc.contract(M, M(j, k), out=(i, k))
    first, second = tnc.environment(expr, M), tnc.environment(expr, M(j, k))
    same(evaluate(tnc.contract(first, M, out=(i, k)), {"M": m}), m @ m)
    same(evaluate(tnc.contract(second, M(j, k), out=(i, k)), {"M": m}), m @ m)


def test_an_ambiguous_environment_lists_the_occurrences() -> None:
    """ambiguous or nonlinear raises and lists the occurrences"""
    i, j, k, l = tnc.indices("i j k l", size=3)
    M = tnc.param("M", i, j)
    expr = tnc.contract(M, M(j, k), out=(i, k))
    with pytest.raises(GradientError, match=r"M\(i, j\).*M\(j, k\)"):
        tnc.environment(expr, M(k, l))
    with pytest.raises(GradientError, match="2 times"):
        tnc.environment(tnc.contract(M, M, out=()), M)


def test_a_nonlinear_environment_raises_and_lists() -> None:
    """ambiguous or nonlinear raises and lists the occurrences"""
    for expr in (tnc.tanh(A), tnc.exp(X @ A) @ B, X / A, A.max(J), A + 1.0, A.conj() * 1.0):
        with pytest.raises(GradientError, match=r"A\(i, j\)"):
            tnc.environment(expr, A)


def test_the_environment_in_a_sum_raises() -> None:
    with pytest.raises(GradientError):
        tnc.environment(X @ A + (X @ A).sum() * tnc.ones(J), A)


def test_the_environment_of_an_absent_leaf_raises() -> None:
    with pytest.raises(GradientError):
        tnc.environment(A @ B, X)
    with pytest.raises(GradientError):
        tnc.environment(A @ B, "X")


def test_the_environment_of_the_only_tensor() -> None:
    i = tnc.Index("i", 2)
    x = tnc.input("x", i)
    check(tnc.contract(tnc.environment(x.sum(i), x), x, out=()), rand(2).sum(), x=rand(2))
    environment = tnc.environment(x * 2, x)
    check(tnc.contract(environment, x, out=(i,)), 2 * rand(2), x=rand(2))


def test_the_environment_beside_a_nonlinear_factor() -> None:
    y = tnc.input("y", K)
    expr = tnc.contract(X, A, tnc.tanh(B), y, out=())
    environment = tnc.environment(expr, A)
    q = rand(4)
    expected = np.outer(DATA["x"], np.tanh(DATA["B"]) @ q)
    check(environment, expected, x=DATA["x"], B=DATA["B"], y=q)


def test_the_environment_through_a_delta() -> None:
    """the network with that occurrence taken out: contracting it back gives expr"""
    i, j = tnc.indices("i j", size=3)
    M = tnc.input("M", i, j)
    expr = tnc.contract(M, tnc.delta(i, j), out=())
    environment = tnc.environment(expr, M)
    check(tnc.contract(environment, M, out=()), np.trace(rand(3, 3)), M=rand(3, 3))
    diagonal = tnc.contract(M, tnc.delta(i, j), out=(i,))
    environment = tnc.environment(diagonal, M)
    check(tnc.contract(environment, M, out=(i,)), np.diag(rand(3, 3)), M=rand(3, 3))
