"""compress: the nearest network of a smaller bond, without a dense tensor, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tncompiler.ir.errors import ArgumentError, DTypeError, GradientError, UnknownIndex

I, J, R = tnc.indices("i j r", i=6, j=5, r=4)
A, B = tnc.param("A", I, R), tnc.param("B", R, J)
RNG = np.random.default_rng(4)
ARRAYS = {"A": RNG.standard_normal((6, 4)), "B": RNG.standard_normal((4, 5))}


def truncated(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The nearest matrix of a rank, by torch's singular value decomposition."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :count] * s[..., None, :count]) @ v[..., :count, :]


def run(expr: tnc.Expr, arrays: dict[str, np.ndarray], runner: str = "function") -> np.ndarray:
    (value,) = oracle.Runner((expr,), runner, "float64", {}).forward(arrays)
    return value


@pytest.mark.parametrize("runner", oracle.RUNNERS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_nearest_matrix_and_its_gradients(runner: str, count: int) -> None:
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in ARRAYS.items()}
    expected = truncated(leaves["A"] @ leaves["B"], count)
    cotangent = RNG.standard_normal((6, 5))
    expected.backward(torch.tensor(cotangent))
    expr = tnc.compress(A @ B, R, max_bond=count)
    compiled = oracle.Runner((expr,), runner, "float64", {})
    (value,), found = compiled.gradients(ARRAYS, [cotangent], ("A", "B"))
    assert np.allclose(value, expected.detach().numpy())
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert np.allclose(found[name], leaf.grad.numpy(), atol=1e-7), name


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_equal_singular_values(runner: str) -> None:
    """finite gradients; right ones where what is kept is clear"""
    equal = {"A": np.eye(6, 4), "B": np.eye(4, 5) * np.array([2.0, 2.0, 2.0, 1.0])[:, None]}
    for count in (2, 3):  # among equal ones, and between them and a smaller one
        compiled = oracle.Runner((tnc.compress(A @ B, R, max_bond=count),), runner, "float64", {})
        cotangent = RNG.standard_normal((6, 5))
        (value,), found = compiled.gradients(equal, [cotangent], ("A", "B"))
        assert all(np.isfinite(array).all() for array in found.values())
        assert np.linalg.matrix_rank(value) == count
    moved = RNG.standard_normal((6, 4))
    step = 1e-6
    sides = [equal["A"] + sign * step * moved for sign in (1, -1)]
    ahead, behind = (truncated(torch.tensor(side @ equal["B"]), 3).numpy() for side in sides)
    slope = ((ahead - behind) * cotangent).sum() / (2 * step)
    assert np.isclose((found["A"] * moved).sum(), slope, rtol=1e-5)


def test_a_state_of_low_rank_and_one_of_zeros() -> None:
    """singular values that are zero already: exact values, finite gradients"""
    low = {"A": ARRAYS["A"][:, :1] @ np.ones((1, 4)), "B": ARRAYS["B"]}
    for arrays in (low, {"A": np.zeros((6, 4)), "B": ARRAYS["B"]}):
        compiled = oracle.Runner((tnc.compress(A @ B, R, max_bond=3),), "function", "float64", {})
        (value,), found = compiled.gradients(arrays, [np.ones((6, 5))], ("A", "B"))
        assert np.allclose(value, arrays["A"] @ arrays["B"])
        assert all(np.isfinite(array).all() for array in found.values())


def test_a_cutoff_leaves_out_small_singular_values() -> None:
    diagonal = {"A": np.eye(6, 4), "B": np.eye(4, 5) * np.array([4.0, 2.0, 1.0, 0.1])[:, None]}
    value = run(tnc.compress(A @ B, R, cutoff=0.3), diagonal)
    assert np.allclose(np.diag(value), [4, 2, 0, 0, 0])
    assert np.allclose(run(tnc.compress(A @ B, R, cutoff=0.3, max_bond=1), diagonal)[1:], 0)


# ---------------------------------------------------------------------------- networks

BATCH, N = tnc.Index("b"), 14


def state(sites: int) -> tuple[list[tnc.Expr], list[tnc.Index], list[tnc.Index]]:
    """The cores of a batch of matrix product states, their open indices and their bonds."""
    opens = [tnc.Index(f"s{n}", 2) for n in range(sites)]
    bonds = [tnc.Index(f"r{n}", 3) for n in range(sites - 1)]
    cores = []
    for n, index in enumerate(opens):
        around = [*([bonds[n - 1]] if n else []), index, *([bonds[n]] if n < sites - 1 else [])]
        cores.append(tnc.input(f"x{n}", BATCH, *around))
    return cores, opens, bonds


def test_each_of_a_batch_is_truncated_on_its_own() -> None:
    cores, opens, bonds = state(4)
    network = tnc.contract(*cores, out=(BATCH, *opens))
    f = tnc.compile(tnc.compress(network, bonds[1], max_bond=2), framework="numpy", dtype="float64")
    whole = tnc.compile(network, framework="numpy", dtype="float64")
    arrays = [RNG.standard_normal((3, *(i.size for i in core.indices[1:]))) for core in cores]
    dense = torch.tensor(whole(*arrays)).reshape(3, 4, 4)
    assert np.allclose(f(*arrays).reshape(3, 4, 4), truncated(dense, 2).numpy())


def test_an_operator_on_a_state_is_never_dense() -> None:
    """bonds multiply and are truncated as pairs; nothing of 2^14 numbers is made"""
    cores, opens, bonds = state(N)
    links = [tnc.Index(f"w{n}", 2) for n in range(N - 1)]
    outs = [tnc.Index(f"o{n}", 2) for n in range(N)]
    operator = []
    for n in range(N):
        around = [*([links[n - 1]] if n else []), *([links[n]] if n < N - 1 else [])]
        operator.append(tnc.input(f"w{n}", opens[n], outs[n], *around))
    applied = tnc.contract(*cores, *operator, out=(BATCH, *outs))
    middle = N // 2
    small = tnc.compress(applied, (bonds[middle], links[middle]), max_bond=4)
    probes = [tnc.input(f"p{n}", outs[n]) for n in range(N)]
    given = {
        leaf.name: RNG.standard_normal([1 if i == BATCH else i.size for i in leaf.indices])
        for leaf in (*cores, *operator, *probes)
    }
    probed = tnc.contract(small, *probes, out=(BATCH,))
    f = tnc.compile(probed, framework="numpy", dtype="float64")
    assert f.cost(sizes={BATCH: 1}).peak_bytes < 8 * 2**N / 4
    whole = tnc.compile(applied, framework="numpy", dtype="float64")
    dense = whole(**{name: given[name] for name in whole.inputs}).reshape(2 ** (middle + 1), -1)
    wanted = truncated(torch.tensor(dense), 4).numpy().reshape(1, *[2] * N)
    for n in reversed(range(N)):
        wanted = wanted @ given[f"p{n}"]
    assert np.allclose(f(**given), wanted)


# ---------------------------------------------------------------------------- errors and JSON


def test_truncations_are_saved() -> None:
    expr = tnc.compress(A @ B, R, max_bond=2, cutoff=0.1)
    assert tnc.from_json(expr.to_json()) == expr
    gradient = tnc.grad(expr, A, cotangent=tnc.input("ct", I, J))
    assert tnc.from_json(gradient.to_json()) == gradient


def test_bad_use() -> None:
    with pytest.raises(UnknownIndex, match="the network sums no index 'i'"):
        tnc.compress(A @ B, I, max_bond=2)
    with pytest.raises(ArgumentError, match="nothing says how far"):
        tnc.compress(A @ B, R)
    for options in ({"max_bond": 0}, {"max_bond": 1.5}, {"cutoff": 1.0}, {"cutoff": -0.1}):
        with pytest.raises(ArgumentError, match=r"compress: (max_bond|cutoff) is"):
            tnc.compress(A @ B, R, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="is no contraction"):
        tnc.compress(A, R, max_bond=1)
    ring = tnc.contract(A, B, tnc.input("c", I, J), out=())
    with pytest.raises(ArgumentError, match="has 1 parts that carry it"):
        tnc.compress(ring, R, max_bond=1)
    with pytest.raises(ArgumentError, match="bond is a symbol"):
        tnc.compress(
            tnc.input("x", tnc.Index("q")) @ tnc.input("y", tnc.Index("q"), J), "q", max_bond=1
        )
    complex_a = tnc.param("Z", I, R, dtype="complex64")
    with pytest.raises(DTypeError, match="not defined for complex64"):
        tnc.compile(tnc.compress(complex_a @ B, R, max_bond=1))
    assert tnc.compress(A @ B, R, max_bond=9) == A @ B


def test_what_has_no_derivative_says_so() -> None:
    small = tnc.compress(A @ B, R, max_bond=2)
    gradient = tnc.grad((small * small).sum(), A)
    with pytest.raises(GradientError, match="first derivatives in reverse mode"):
        tnc.grad(gradient.sum(), A)
    with pytest.raises(GradientError, match="first derivatives in reverse mode"):
        tnc.jvp(small, {A: tnc.input("d", I, R)})
