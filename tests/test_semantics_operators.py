"""Operators: what @, *, /, +, -, contract, reductions, re-indexing and maps mean."""

import contextlib

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_semantics_helpers import check, crand, evaluate, rand, same
from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import (
    ArgumentError,
    RepeatedIndex,
    ShapeError,
    SizeClash,
    SizeEquationError,
    TncError,
    UnknownIndex,
)

I, J, K, L = tnc.indices("i j k l", i=2, j=3, k=4, l=5)
A, B, C = tnc.input("A", I, J), tnc.input("B", J, K), tnc.input("C", K, L)
V, W = tnc.input("v", J), tnc.input("w", K)
a, b, c, v, w = rand(2, 3), rand(3, 4, seed=1), rand(4, 5, seed=2), rand(3, seed=3), rand(4, seed=4)
DATA = {"A": a, "B": b, "C": c, "v": v, "w": w}


def test_matmul_sums_every_common_index() -> None:
    """`a @ b` sums every index common to both"""
    check(A @ B, a @ b, **DATA)
    check(A @ A, (a * a).sum(), **DATA)
    x, y = tnc.input("x", I, J, K), tnc.input("y", K, I, L)
    p, q = rand(2, 3, 4), rand(4, 2, 5)
    check(x @ y, np.einsum("ijk,kil->jl", p, q), x=p, y=q)


def test_matmul_raises_without_a_common_index() -> None:
    """and raises if there is none (use `*`)"""
    with pytest.raises(UnknownIndex, match="no index in common"):
        A @ C


@pytest.mark.parametrize("scalar", [2, 2.0, 1j])
def test_matmul_with_a_scalar_raises(scalar) -> None:
    """and raises if there is none (use `*`)"""
    with pytest.raises(UnknownIndex):
        A @ scalar
    with pytest.raises(UnknownIndex):
        scalar @ A


def test_times_aligns_and_takes_the_union() -> None:
    """`a * b`, `a / b` align by index and take the union"""
    assert (A * B).indices == (I, J, K)
    check(A * B, a[:, :, None] * b, **DATA)
    check(A / B, a[:, :, None] / b, **DATA)
    check(A * V, a * v, **DATA)
    check(V / A, (v / a).T, **DATA)


def test_times_is_an_outer_product_where_nothing_is_common() -> None:
    """(an outer product where nothing is common)"""
    check(V * W, np.outer(v, w), **DATA)
    check(V / W, v[:, None] / w, **DATA)


def test_results_are_ordered_left_then_new_of_right() -> None:
    """Results are ordered: left operand's indices, then new ones of the right."""
    x = tnc.input("x", K, I)
    assert (x * A).indices == (K, I, J)
    assert (A * x).indices == (I, J, K)
    assert (B @ x).indices == (J, I)
    assert (x @ B).indices == (I, J)
    assert (V / x).indices == (J, K, I)
    assert (V + A).indices == (J, I)
    assert (A + V).indices == (I, J)
    assert tnc.maximum(V, A).indices == (J, I)
    assert (V < A).indices == (J, I)


def test_plus_with_a_subset_on_either_side() -> None:
    """`a + b`, `a - b` need one operand's index set to contain the other's"""
    check(A + V, a + v, **DATA)
    check(V - A, (v - a).T, **DATA)
    check(V + A, (v + a).T, **DATA)
    check(A - A.transpose(J, I), a * 0, **DATA)
    check(A + A.transpose(J, I), 2 * a, **DATA)


@pytest.mark.parametrize("op", [lambda p, q: p + q, lambda p, q: p - q])
def test_plus_of_disjoint_sets_raises(op) -> None:
    """`a + b`, `a - b` need one operand's index set to contain the other's"""
    with pytest.raises(UnknownIndex, match="ones"):
        op(A, B)
    with pytest.raises(UnknownIndex):
        op(V, W)


def test_ones_widen_explicitly() -> None:
    """widen explicitly with `* tnc.ones(k)`"""
    check(A * tnc.ones(K) + B, a[:, :, None] + b, **DATA)
    check(V * tnc.ones(K), np.repeat(v[:, None], 4, 1), **DATA)
    check(tnc.ones(I, J) * 1.0, np.ones((2, 3)))


@pytest.mark.parametrize("number", [2, 2.5, -1, 0, 1 / 3, np.float32(2), np.int64(3), True])
def test_numbers_as_operands(number) -> None:
    check(A + number, a + number, **DATA)
    check(number - A, number - a, **DATA)
    check(number * A, number * a, **DATA)
    check(number / (A * A + 1), number / (a * a + 1), **DATA)
    check(A / 2, a / 2, **DATA)


def test_complex_numbers_as_operands() -> None:
    z = crand(2, 3)
    check(A * (1 + 2j) - 3j, z * (1 + 2j) - 3j, A=z)


def test_sizes_as_numbers() -> None:
    n = tnc.Index("n")
    x = tnc.input("x", n)
    check(x.sum(n) / n.size, rand(7).mean(), x=rand(7))
    check(x * n.size, rand(7) * 7, x=rand(7))


@pytest.mark.parametrize("power", [0, 1, 2, 3, 4, -1, -2, 0.5, 2.5])
def test_powers(power) -> None:
    p = np.abs(a) + 0.1
    check(A**power, p**power, A=p)


def test_negation_and_abs() -> None:
    check(-A, -a, **DATA)
    check(abs(A), np.abs(a), **DATA)
    check(A.abs(), np.abs(a), **DATA)


def test_a_sum_of_a_product_is_a_contraction() -> None:
    """`(A * B * C).sum(r)` **is** `tnc.contract(A, B, C, …)`"""
    via_sum = (A * B * C).sum(J, K)
    direct = tnc.contract(A, B, C, out=(I, L))
    check(via_sum, a @ b @ c, **DATA)
    plans = [tnc.plan(expr) for expr in (via_sum, direct)]
    assert plans[0].path == plans[1].path
    assert plans[0].flops == plans[1].flops
    assert plans[0].digest == plans[1].digest


def test_a_sum_of_a_product_is_never_materialised() -> None:
    """a sum over a product is a contraction and is never materialised"""
    n = tnc.Index("n", 3000)
    m, o = tnc.Index("m", 3000), tnc.Index("o", 3000)
    x, y, z = tnc.input("x", n, m), tnc.input("y", m, o), tnc.input("z", o)
    f = tnc.compile((x * y * z).sum(m, o), framework="numpy")
    assert f.peak_memory <= 4 * 2 * 3000
    assert f.flops <= 2 * 2 * 3000**2


@pytest.mark.parametrize("factor", [2.0, -1])
def test_a_scaled_sum_of_a_product_is_never_materialised(factor) -> None:
    """a sum over a product is a contraction and is never materialised"""
    n, m = tnc.Index("n", 3000), tnc.Index("m", 3000)
    x, y = tnc.input("x", n), tnc.input("y", m)
    f = tnc.compile((factor * x * y).sum(n, m), framework="numpy")
    assert f.peak_memory <= 4 * 3 * 3000


def test_contract_without_out_keeps_what_occurs_once() -> None:
    """keeps the indices that occur exactly once, in order of first appearance"""
    assert tnc.contract(C, A, B).indices == (L, I)
    check(tnc.contract(C, A, B), (a @ b @ c).T, **DATA)
    assert tnc.contract(A).indices == (I, J)
    assert tnc.contract(A, V, V).indices == (I,)
    check(tnc.contract(A, V, V), a @ (v * v), **DATA)
    z, y = tnc.indices("z a", size=2)
    assert tnc.contract(tnc.input("x", z, y)).indices == (z, y)


def test_contract_with_out() -> None:
    """sum of products over every index not in out"""
    check(tnc.contract(A, B, out=(K, I)), (a @ b).T, **DATA)
    check(tnc.contract(A, B, out=()), (a @ b).sum(), **DATA)
    check(tnc.contract(A, V, out=(J, I)), (a * v).T, **DATA)
    check(tnc.contract(A, B, out=(I, J, K)), a[:, :, None] * b, **DATA)
    check(tnc.contract(A, out=(J,)), a.sum(0), **DATA)
    check(tnc.contract(V, W, out=()), v.sum() * w.sum(), **DATA)
    check(tnc.contract(V, W, out=[W.indices[0]]), v.sum() * w, **DATA)
    check(tnc.contract(A, B, out=("k", "i")), (a @ b).T, **DATA)


def test_contract_of_hyperedges_traces_and_diagonals() -> None:
    """n-ary contraction: hyperedges, traces, diagonals, outer products, broadcast, batch indices"""
    i, j, k = tnc.indices("i j k", size=3)
    M, N = tnc.input("M", i, j), tnc.input("N", k, i)
    m, n = rand(3, 3), rand(3, 3, seed=1)
    x = tnc.input("x", i)
    p = rand(3)
    data = {"M": m, "N": n, "x": p}
    check(tnc.contract(M, tnc.delta(i, j), out=()), np.trace(m), **data)
    check(tnc.contract(M, tnc.delta(i, j), out=(i,)), np.diag(m), **data)
    check(tnc.contract(M, tnc.delta(i, j), out=(j,)), np.diag(m), **data)
    check(tnc.contract(M, N, x, out=(j, k)), np.einsum("ij,ki,i->jk", m, n, p), **data)
    check(tnc.contract(x, tnc.delta(i, j), out=(i, j)), np.diag(p), **data)
    check(
        tnc.contract(x, tnc.delta(i, j, k), out=(i, j, k)),
        np.einsum("i,ij,ik->ijk", p, np.eye(3), np.eye(3)),
        **data,
    )
    check(tnc.contract(M, N, out=(i, j, k)), np.einsum("ij,ki->ijk", m, n), **data)


def test_structural_tensors_alone() -> None:
    """`tnc.delta(*indices)`, `tnc.ones(*indices)`: structural tensors"""
    i, j, k = tnc.indices("i j k", size=3)
    check(tnc.delta(i, j), np.eye(3))
    check(tnc.delta(i), np.ones(3))
    check(tnc.delta(i, j, k), np.einsum("ij,jk->ijk", np.eye(3), np.eye(3)))
    check(tnc.ones(i, tnc.Index("m", 2)), np.ones((3, 2)))
    check(tnc.ones(), 1.0)
    check(tnc.contract(tnc.delta(i, j), out=()), 3.0)
    check(tnc.ones(i, j).sum(), 9.0)
    check(tnc.delta(i, j) @ tnc.delta(j, k), np.eye(3))
    check(tnc.contract(tnc.delta(i, j), tnc.delta(j, k), tnc.delta(k, i), out=()), 3.0)
    check(tnc.delta(i, j) @ tnc.ones(j), np.ones(3))


def test_structural_tensors_are_not_materialised() -> None:
    """never materialised when an algebraic rewrite removes them"""
    i, j = tnc.indices("i j", size=50_000)
    f = tnc.compile(tnc.input("x", i) @ tnc.delta(i, j), framework="numpy")
    assert f.peak_memory <= 4 * 50_000
    g = tnc.compile((tnc.input("x", i) * tnc.ones(j)).sum(j), framework="numpy")
    assert g.peak_memory <= 2 * 4 * 50_000
    same(g(np.ones(50_000, "float32")), np.full(50_000, 50_000.0))


def test_delta_of_two_sizes_raises() -> None:
    with pytest.raises(SizeClash):
        tnc.delta(I, J)
    with pytest.raises(ArgumentError):
        tnc.delta()
    with pytest.raises(RepeatedIndex):
        tnc.delta(I, I)


@pytest.mark.parametrize(
    ("out", "error"),
    [((L,), UnknownIndex), ((I, I), RepeatedIndex), (("zz",), UnknownIndex), ((3,), TncError)],
)
def test_contract_with_bad_out_raises(out, error) -> None:
    with pytest.raises(error):
        tnc.contract(A, B, out=out)


def test_contract_of_one_index_as_out() -> None:
    """A single Index, as softmax's over= takes it, or a TncError that says to give a tuple."""
    try:
        expr = tnc.contract(A, B, out=I)
    except TncError:
        return
    check(expr, (a @ b).sum(1), **DATA)


# Reductions ---------------------------------------------------------------------------------------


def test_sum_mean_max_min() -> None:
    """`a.sum(i)`, `a.max(i)`, `a.mean(i)` reduce"""
    for name in ("sum", "mean", "max", "min"):
        reduce = getattr(np, name)
        check(getattr(A, name)(J), reduce(a, axis=1), **DATA)
        check(getattr(A, name)("i"), reduce(a, axis=0), **DATA)
        check(getattr(A, name)(I, J), reduce(a), **DATA)
        check(getattr(A, name)(), reduce(a), **DATA)


def test_reducing_an_unknown_index_raises() -> None:
    for name in ("sum", "mean", "max", "min"):
        with pytest.raises(UnknownIndex, match="'k'"):
            getattr(A, name)(K)
        with pytest.raises(RepeatedIndex):
            getattr(A, name)(J, J)


def test_max_splits_tied_gradients_evenly() -> None:
    """`max` splits tied gradients evenly, as `torch.amax`"""
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    t = torch.tensor(x, requires_grad=True)
    (torch.amax(t, 1) * torch.tensor([1.0, 5.0])).sum().backward()
    f = tnc.compile(A.max(J), framework="numpy", dtype="float64")
    _, pull = f.vjp(x)
    same(pull(np.array([1.0, 5.0]))["A"], t.grad.numpy())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("over", [(0,), (1,), (0, 1)])
def test_ties_as_torch_on_every_backend(backend: str, name: str, over: tuple[int, ...]) -> None:
    """`max` splits tied gradients evenly, as `torch.amax`"""
    x = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 1.0]], dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expr = getattr(A, name)(*(A.indices[k] for k in over))
    tnc.compile(expr, backend=backend, dtype="float64")(mine).sin().sum().backward()
    {"max": torch.amax, "min": torch.amin}[name](theirs, over).sin().sum().backward()
    same(mine.grad, theirs.grad)


# Re-indexing --------------------------------------------------------------------------------------


def test_rename() -> None:
    m = tnc.Index("m", 3)
    assert A.rename({J: m}).indices == (I, m)
    assert A.rename({"j": m}).indices == (I, m)
    check(A.rename({J: m}), a, **DATA)
    check((A + 1).rename({J: m}) @ tnc.input("y", m), (a + 1) @ v, y=v, **DATA)


def test_rename_may_swap() -> None:
    i, j = tnc.indices("i j", size=3)
    m = rand(3, 3)
    M = tnc.input("M", i, j)
    swapped = M.rename({i: j, j: i})
    assert swapped.indices == (j, i)
    check(M - swapped, m - m.T, M=m)


def test_rename_onto_a_present_index_raises() -> None:
    """`rename` onto an index already present raises"""
    i, j = tnc.indices("i j", size=3)
    for M in (tnc.input("M", i, j), tnc.relu(tnc.input("M", i, j))):
        with pytest.raises(RepeatedIndex, match="delta"):
            M.rename({i: j})


def test_a_diagonal_is_a_contraction_with_delta() -> None:
    """a diagonal is `contract(A, delta(i, j), out=(i,))`"""
    i, j = tnc.indices("i j", size=3)
    m = rand(3, 3)
    check(tnc.contract(tnc.input("M", i, j), tnc.delta(i, j), out=(i,)), np.diag(m), M=m)


def test_bad_renames_raise() -> None:
    with pytest.raises(UnknownIndex):
        A.rename({K: tnc.Index("m", 4)})
    with pytest.raises(SizeClash):
        A.rename({J: tnc.Index("m", 4)})
    with pytest.raises(TncError):
        A.rename({J: "m"})


def test_transpose() -> None:
    """`t.transpose(i, j, …)`"""
    x = tnc.input("x", I, J, K)
    p = rand(2, 3, 4)
    check(x.transpose(K, I, J), p.transpose(2, 0, 1), x=p)
    check((x * 2).transpose("k", "j", "i"), 2 * p.transpose(2, 1, 0), x=p)
    assert x.transpose(I, J, K) == x
    with pytest.raises(ArgumentError, match="k"):
        x.transpose(I, J)
    with pytest.raises(RepeatedIndex):
        x.transpose(I, J, J)
    with pytest.raises(UnknownIndex):
        x.transpose(I, J, L)


def test_split_and_merge() -> None:
    """`t.split(i, (i1, i2))`, `t.merge((i1, i2), i)` (sizes must multiply out, also as symbols)"""
    n, p, q = tnc.indices("n p q", n=6, p=2, q=3)
    x = tnc.input("x", I, n, K)
    d = rand(2, 6, 4)
    check(x.split(n, (p, q)), d.reshape(2, 2, 3, 4), x=d)
    check(x.split("n", (q, p)), d.reshape(2, 3, 2, 4), x=d)
    check(x.split(n, (p, q)).merge((p, q), n), d, x=d)
    check(x.merge((I, n), tnc.Index("m", 12)), d.reshape(12, 4), x=d)
    check(x.merge((n, I), tnc.Index("m", 12)), d.transpose(1, 0, 2).reshape(12, 4), x=d)
    check(x.merge((K, I), tnc.Index("m", 8)), d.transpose(1, 2, 0).reshape(6, 8), x=d)
    check(x.merge((K,), tnc.Index("m", 4)), d, x=d)


def test_split_that_does_not_multiply_out_raises() -> None:
    """a remainder or a clash raises with the values"""
    n, p, q = tnc.indices("n p q", n=6, p=2, q=4)
    x = tnc.input("x", n)
    with pytest.raises(SizeEquationError, match=r"6.*2 \* 4 = 8"):
        x.split(n, (p, q))
    with pytest.raises(SizeEquationError, match="7"):
        tnc.input("y", p, q).merge((p, q), tnc.Index("m", 7))


def test_split_with_a_symbolic_size() -> None:
    """each determines at most one unknown, by exact division for split"""
    n, p, q = tnc.indices("n p q", p=3)
    x = tnc.input("x", n)
    expr = x.split(n, (p, q))
    for size in (3, 6, 9, 384):
        check(expr, rand(size).reshape(3, -1), x=rand(size))


@pytest.mark.parametrize("part", [2, 3, 5, 7])
def test_split_of_a_free_size_compiles_for_any_part(part: int) -> None:
    """`split`, `merge` … record equations between sizes, solved in order at bind time"""
    n, p, q = tnc.indices("n p q", p=part)
    f = tnc.compile(tnc.input("x", n).split(n, (p, q)).sum(q), framework="numpy", dtype="float64")
    for times in (1, 2, 5, 33):
        x = rand(part * times)
        same(f(x), x.reshape(part, times).sum(1))


def test_a_remainder_raises_with_the_values() -> None:
    """a remainder or a clash raises with the values"""
    n, p, q = tnc.indices("n p q", p=4)
    f = tnc.compile(tnc.input("x", n).split(n, (p, q)), framework="numpy", dtype="float64")
    with pytest.raises(SizeEquationError, match=r"6.*4"):
        f(rand(6))


def test_a_split_that_leaves_two_unknowns_raises() -> None:
    """each determines at most one unknown"""
    n, p, q = tnc.indices("n p q")
    expr = tnc.input("x", n).split(n, (p, q))
    f = tnc.compile(expr, framework="numpy", dtype="float64")
    with pytest.raises(SizeEquationError):
        f(rand(6))
    g = tnc.compile(expr, framework="numpy", dtype="float64", sizes={p: 2})
    same(g(rand(6)), rand(6).reshape(2, 3))


def test_a_split_can_fix_the_size_of_a_parameter() -> None:
    """record equations between sizes, solved in order at bind time"""
    n, p, q = tnc.indices("n p q", n=6, p=2)
    expr = tnc.input("x", n).split(n, (p, q)) @ tnc.param("W", q)
    f = tnc.compile(expr, framework="numpy", seed=0)
    assert f.parameters["W"].shape == (3,)


def test_a_merge_determines_the_whole() -> None:
    """solved in order at bind time"""
    b, i, m = tnc.indices("b i m", i=3)
    x = tnc.input("x", b, i)
    check(x.merge((b, i), m), rand(5, 3).ravel(), x=rand(5, 3))
    check(x.merge((b, i), m).sum(m), rand(5, 3).sum(), x=rand(5, 3))


def test_a_merge_determines_a_part() -> None:
    b, i, m = tnc.indices("b i m")
    x = tnc.input("x", b, i)
    merged = x.merge((b, i), m) * tnc.input("y", m)
    check(merged, rand(5, 3).ravel() * rand(15), x=rand(5, 3), y=rand(15))


def test_a_clash_of_a_merge_raises_with_the_values() -> None:
    """a remainder or a clash raises with the values"""
    b, i, m = tnc.indices("b i m")
    expr = tnc.input("x", b, i).merge((b, i), m) * tnc.input("y", m)
    with pytest.raises(TncError, match="15"):
        evaluate(expr, {"x": rand(5, 3), "y": rand(16)})


def test_split_and_merge_chains() -> None:
    """A derived size is … substituted last"""
    n, p, q, m = tnc.indices("n p q m", p=3)
    x = tnc.input("x", n)
    expr = x.split(n, (p, q)).merge((q, p), m)
    d = rand(12)
    check(expr, d.reshape(3, 4).T.ravel(), x=d)
    check(expr.sum(m), d.sum(), x=d)


def test_products_of_symbols_multiply_out() -> None:
    """(sizes must multiply out, also as symbols)"""
    p, q = tnc.indices("p q")
    m = tnc.Index("m", p.size * q.size)
    x = tnc.input("x", p, q)
    check(x.merge((p, q), m), rand(3, 4).ravel(), x=rand(3, 4))
    check(x.merge((p, q), m).split(m, (q, p)), rand(3, 4).reshape(4, 3), x=rand(3, 4))


def test_symbols_that_cannot_multiply_out_raise() -> None:
    """(sizes must multiply out, also as symbols)"""
    p, q = tnc.indices("p q")
    x = tnc.input("x", p, q)
    m = tnc.Index("m", p.size * q.size + 1)
    with pytest.raises(SizeEquationError):
        tnc.compile(x.merge((p, q), m), framework="numpy", dtype="float64")(rand(3, 4))


def test_split_into_a_present_index_raises() -> None:
    n = tnc.Index("n", 6)
    with pytest.raises(RepeatedIndex):
        tnc.input("x", n, I).split(n, (I, J))
    with pytest.raises(SizeClash):
        tnc.input("x", n, tnc.Index("j", 9)).split(n, (I, J))


def test_bad_splits_and_merges_raise() -> None:
    x = tnc.input("x", I, J)
    with pytest.raises(UnknownIndex):
        x.split(K, (tnc.Index("p", 2), tnc.Index("q", 2)))
    with pytest.raises(TncError):
        x.split(I, ())
    with pytest.raises(TncError):
        x.merge((), K)
    with pytest.raises(UnknownIndex):
        x.merge((I, K), tnc.Index("m", 8))
    with pytest.raises(RepeatedIndex):
        x.merge((I, I), tnc.Index("m", 4))
    with pytest.raises(TncError):
        x.split(I, ("p", "q"))
    with pytest.raises(TncError):
        x.merge((I, J), "m")


def test_select() -> None:
    """`t.select(i, k)`"""
    check(A.select(J, 1), a[:, 1], **DATA)
    check(A.select(J, -1), a[:, -1], **DATA)
    check(A.select("i", 0), a[0], **DATA)
    check(A.select(I, 1).select(J, 2), a[1, 2], **DATA)
    for position in (3, -4, 100):
        with pytest.raises(SizeClash):
            A.select(J, position)
    with pytest.raises(ArgumentError):
        A.select(J, 0.5)
    with pytest.raises(UnknownIndex):
        A.select(K, 0)


def test_select_from_a_free_size() -> None:
    n = tnc.Index("n")
    x = tnc.input("x", n)
    check(x.select(n, -1), rand(5)[-1], x=rand(5))
    check(x.select(n, 2), rand(5)[2], x=rand(5))


@pytest.mark.parametrize("position", [5, 6, 127, -6, -7])
def test_select_beyond_a_free_size_raises(position: int) -> None:
    n = tnc.Index("n")
    with pytest.raises(TncError):
        evaluate(tnc.input("x", n).select(n, position), {"x": rand(5)})


def test_slice() -> None:
    """`t.slice(i, a, z)`"""
    check(A.slice(J, 1, 3), a[:, 1:3], **DATA)
    check(A.slice(J, 0, 3), a, **DATA)
    check(A.slice(J, 1, 1), a[:, 1:1], **DATA)
    check(A.slice(J, 0, -1), a[:, :-1], **DATA)
    check(A.slice(J, -2, None), a[:, -2:], **DATA)
    check(A.slice(J, None, 2), a[:, :2], **DATA)
    assert A.slice(J, 1, 3).indices == (I, tnc.Index("j", 2))
    for start, stop in ((2, 1), (0, 4), (-5, 2), (4, 4)):
        with pytest.raises(SizeClash):
            A.slice(J, start, stop)


def test_slice_of_a_free_size() -> None:
    n = tnc.Index("n")
    x = tnc.input("x", n)
    check(x.slice(n, 1, None), rand(5)[1:], x=rand(5))
    check(x.slice(n, 1, -1), rand(5)[1:-1], x=rand(5))
    check(x.slice(n, -2, None), rand(5)[-2:], x=rand(5))
    check(x.slice(n, 1, 3), rand(5)[1:3], x=rand(5))


def test_a_slice_difference_of_a_free_size() -> None:
    n = tnc.Index("n")
    x = tnc.input("x", n)
    check(x.slice(n, 1, None) - x.slice(n, 0, -1), np.diff(rand(6)), x=rand(6))


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (6, None), (-6, None), (1, -5)])
def test_slice_beyond_a_free_size_raises(start, stop) -> None:
    n = tnc.Index("n")
    with pytest.raises(TncError):
        evaluate(tnc.input("x", n).slice(n, start, stop), {"x": rand(5)})


def test_stack() -> None:
    """`tnc.stack([…], i)`"""
    s = tnc.Index("s", 2)
    x, y = tnc.input("x", I, J), tnc.input("y", J, I)
    p, q = rand(2, 3), rand(3, 2)
    check(tnc.stack([x, y], s), np.stack([p, q.T]), x=p, y=q)
    check(tnc.stack([x.sum(), y.sum()], s), np.stack([p.sum(), q.sum()]), x=p, y=q)
    check(tnc.stack([x], tnc.Index("s", 1)), p[None], x=p)
    check(tnc.stack([x, x, x], tnc.Index("s", 3)), np.stack([p] * 3), x=p)


def test_bad_stacks_raise() -> None:
    x = tnc.input("x", I, J)
    with pytest.raises(SizeClash):
        tnc.stack([x, x], tnc.Index("s", 3))
    with pytest.raises(TncError):
        tnc.stack([], tnc.Index("s", 0))
    with pytest.raises(TncError):
        tnc.stack([x, V], tnc.Index("s", 2))
    with pytest.raises(TncError):
        tnc.stack([x, x], I)
    with pytest.raises(TncError):
        tnc.stack([x, x], "s")


def test_concat() -> None:
    """`tnc.concat([…], i)`"""
    x = tnc.input("x", I, tnc.Index("n", 3))
    y = tnc.input("y", tnc.Index("n", 4), I)
    p, q = rand(2, 3), rand(4, 2)
    expr = tnc.concat([x, y], tnc.Index("n", 7))
    assert expr.indices == (I, tnc.Index("n", 7))
    check(expr, np.concatenate([p, q.T], 1), x=p, y=q)
    check(tnc.concat([x], tnc.Index("n", 3)), p, x=p)
    check(tnc.concat([x, x], tnc.Index("n", 6)).sum("n"), 2 * p.sum(1), x=p)


def test_concat_of_free_sizes() -> None:
    m, n = tnc.size("m"), tnc.size("n")
    x, y = tnc.input("x", tnc.Index("t", m)), tnc.input("y", tnc.Index("t", n))
    expr = tnc.concat([x, y], tnc.Index("t", m + n))
    p, q = rand(3), rand(4)
    check(expr, np.concatenate([p, q]), x=p, y=q)
    check(
        expr * tnc.input("z", tnc.Index("t", m + n)),
        np.concatenate([p, q]) ** 2,
        x=p,
        y=q,
        z=np.concatenate([p, q]),
    )


def test_bad_concats_raise() -> None:
    x = tnc.input("x", I, tnc.Index("n", 3))
    with pytest.raises(SizeClash):
        tnc.concat([x, x], tnc.Index("n", 5))
    with pytest.raises(TncError):
        tnc.concat([], tnc.Index("n", 0))
    with pytest.raises(SizeClash):
        tnc.concat([x, tnc.input("y", tnc.Index("n", 3))], tnc.Index("n", 6))
    with pytest.raises(UnknownIndex):
        tnc.concat([x, x], tnc.Index("q", 6))
    with pytest.raises(SizeClash):
        tnc.concat([x, tnc.input("y", tnc.Index("i", 5), tnc.Index("n", 3))], tnc.Index("n", 6))


# Elementwise --------------------------------------------------------------------------------------


def test_where_and_comparisons() -> None:
    """`tnc.where`, comparisons"""
    z = np.where(a > 0, a, 0.0)
    data = {"A": z, "v": np.array([0.0, 1.0, -1.0])}
    for op, ref in [
        (lambda p, q: p < q, np.less),
        (lambda p, q: p <= q, np.less_equal),
        (lambda p, q: p > q, np.greater),
        (lambda p, q: p >= q, np.greater_equal),
        (tnc.equal, np.equal),
        (tnc.not_equal, np.not_equal),
    ]:
        got = evaluate(op(A, V), data)
        assert got.dtype == bool
        same(got, ref(z, data["v"]))
        same(evaluate(tnc.where(op(A, V), A, V), data), np.where(ref(z, data["v"]), z, data["v"]))
        same(evaluate(op(A, 0), data), ref(z, 0))
    same(evaluate(A > 0, data), z > 0)


def test_where_takes_numbers_and_broadcasts() -> None:
    check(tnc.where(A > 0, 1.0, -1.0), np.where(a > 0, 1.0, -1.0), **DATA)
    check(tnc.where(V > 0, A, 0.0), np.where(v > 0, a, 0).T, **DATA)
    check(tnc.where(A > 0, A, 0), np.where(a > 0, a, 0), **DATA)


def test_an_expression_has_no_truth_value() -> None:
    for expr in (A, A > 0, tnc.equal(A, A)):
        with pytest.raises(ArgumentError, match="truth"):
            bool(expr)
    with pytest.raises(ArgumentError):
        0 < A < 1  # noqa: B015


UNARY = {
    "exp": np.exp,
    "expm1": np.expm1,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sign": np.sign,
    "abs": np.abs,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "gelu": lambda x: torch.nn.functional.gelu(torch.tensor(x)).numpy(),
    "erf": lambda x: torch.erf(torch.tensor(x)).numpy(),
    "stop_gradient": lambda x: x,
}
POSITIVE = {
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
}


@pytest.mark.parametrize("name", [*UNARY, *POSITIVE])
def test_elementwise_functions(name: str) -> None:
    """`tnc.relu, gelu, silu, tanh, sigmoid, exp, log, sqrt, …`: elementwise maps"""
    reference = {**UNARY, **POSITIVE}[name]
    x = np.abs(a) + 0.1 if name in POSITIVE else a * 3
    check(getattr(tnc, name)(A), reference(x), A=x)
    check(getattr(tnc, name)(A.select(I, 0).select(J, 0)), reference(x)[0, 0], A=x)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_binary_functions(name: str) -> None:
    check(getattr(tnc, name)(A, V), getattr(np, name)(a, v), **DATA)
    check(getattr(tnc, name)(A, 0), getattr(np, name)(a, 0), **DATA)
    check(getattr(tnc, name)(0.5, A), getattr(np, name)(a, 0.5), **DATA)


@pytest.mark.parametrize("over", [J, "j", (J,), (I, J), [I]], ids=str)
def test_softmax_family(over) -> None:
    """`softmax(t, over=i)`"""
    keys = over if isinstance(over, tuple | list) else (over,)
    axes = tuple({"i": 0, "j": 1}[getattr(key, "name", key)] for key in keys)
    e = np.exp(a)
    check(tnc.softmax(A, over=over), e / e.sum(axes, keepdims=True), **DATA)
    check(tnc.log_softmax(A, over=over), np.log(e / e.sum(axes, keepdims=True)), **DATA)
    check(tnc.logsumexp(A, over=over), np.log(e.sum(axes)), **DATA)


def test_softmax_of_large_values_is_finite() -> None:
    big = a * 1000
    got = evaluate(tnc.softmax(A, over=J), {"A": big})
    same(got, torch.softmax(torch.tensor(big), 1).numpy())
    same(evaluate(tnc.logsumexp(A, over=J), {"A": big}), torch.logsumexp(torch.tensor(big), 1))


def test_softmax_over_nothing_known_raises() -> None:
    with pytest.raises(UnknownIndex):
        tnc.softmax(A, over=K)


def test_layer_norm() -> None:
    """`layer_norm(t, over=(i,…))`"""
    t = torch.tensor(a)
    weight, bias = tnc.param("g", J), tnc.param("h", J)
    g, h = rand(3, seed=8), rand(3, seed=9)
    check(tnc.layer_norm(A, over=J), torch.nn.functional.layer_norm(t, (3,)).numpy(), **DATA)
    check(tnc.layer_norm(A, over=(I, J)), torch.nn.functional.layer_norm(t, (2, 3)).numpy(), **DATA)
    expected = torch.nn.functional.layer_norm(t, (3,), torch.tensor(g), torch.tensor(h), 1e-3)
    expr = tnc.layer_norm(A, over=J, weight=weight, bias=bias, eps=1e-3)
    check(expr, expected.numpy(), A=a, g=g, h=h)


def test_complex_parts() -> None:
    """`t.conj() .real .imag .abs()`"""
    z = crand(2, 3)
    for expr, expected in [
        (A.conj(), z.conj()),
        (A.real, z.real),
        (A.imag, z.imag),
        (A.abs(), np.abs(z)),
        (A * A.conj(), z * z.conj()),
        (A.conj().conj(), z),
        (A.real + 1j * A.imag, z),
    ]:
        check(expr, expected, A=z)


def test_complex_parts_of_real_tensors() -> None:
    """`t.conj() .real .imag .abs()`"""
    check(A.conj(), a, **DATA)
    check(A.real, a, **DATA)
    check(A.imag, a * 0, **DATA)


def test_real_parts_are_real() -> None:
    z = crand(2, 3)
    for expr in (A.real, A.imag, A.abs(), (A * A.conj()).real):
        assert evaluate(expr, {"A": z}).dtype == np.float64


def test_ordering_complex_numbers_raises() -> None:
    z = crand(2, 3)
    for expr in (A.max(J), A < 1, tnc.relu(A), tnc.maximum(A, 0)):
        with pytest.raises(TncError):
            evaluate(expr, {"A": z})


# Whole expressions --------------------------------------------------------------------------------


def test_replace() -> None:
    """`expr.replace(leaf, expr)`"""
    expr = tnc.relu(A @ B)
    m = tnc.input("m", J, I)
    p = rand(3, 2)
    check(expr.replace(A, m), np.maximum(p.T @ b, 0), m=p, B=b)
    check(expr.replace(A, A * 2), np.maximum(2 * a @ b, 0), A=a, B=b)
    check(expr.replace(B, tnc.ones(J, K)), np.maximum(a.sum(1, keepdims=True) * np.ones(4), 0), A=a)
    check(A.replace(A, B.sum(K) * tnc.ones(I)), np.tile(b.sum(1), (2, 1)), B=b)
    check((A + 0).replace(A, A), a, **DATA)


def test_replace_does_not_capture() -> None:
    """A pass that would capture an index renames the bound one"""
    i, j = tnc.indices("i j", size=3)
    M, x = tnc.input("M", i, j), tnc.input("x", j)
    inner = M @ x
    y = tnc.input("y", i, j)
    expr = inner.replace(x, y.sum(i))
    m, q = rand(3, 3), rand(3, 3, seed=1)
    check(expr, m @ q.sum(0), M=m, y=q)


def test_bad_replacements_raise() -> None:
    with pytest.raises(ArgumentError):
        (A @ B).replace(A @ B, A)
    with pytest.raises(SizeClash):
        (A @ B).replace(A, V)
    with pytest.raises(TncError):
        (A @ B).replace("A", A)


def test_replacing_what_does_not_occur() -> None:
    """A leaf that does not occur is a mistake: it raises, or leaves the expression as it is."""
    x = tnc.input("x", I)
    with contextlib.suppress(TncError):
        assert (A @ B).replace(x, x * 2) == A @ B


def test_leaves_shape_indices() -> None:
    """`expr.indices / .shape / .leaves`"""
    expr = (C.transpose(L, K) * W) @ B @ A
    assert expr.indices == (L, I)
    assert expr.shape == (5, 2)
    assert expr.ndim == 2
    assert [leaf.name for leaf in expr.leaves] == ["C", "w", "B", "A"]
    assert (A + A).leaves == (A,)
    assert tnc.ones(I).leaves == ()


def test_numpy_arrays_beside_expressions_raise() -> None:
    for op in (lambda: A + a, lambda: a * A, lambda: a @ A, lambda: np.ones(3) / V):
        with pytest.raises(ArgumentError, match="constant"):
            op()


@pytest.mark.parametrize("other", ["x", None, [1], {}, object()], ids=lambda v: type(v).__name__)
def test_strange_operands_raise(other) -> None:
    for op in (lambda o: A + o, lambda o: o * A, lambda o: A @ o, lambda o: A / o, lambda o: o > A):
        with pytest.raises(TncError):
            op(other)


def test_calls_reindex_by_position() -> None:
    """`A(b0, p0, b1)` re-indexes by position"""
    i, j, k = tnc.indices("i j k", size=3)
    M = tnc.input("M", i, j)
    m = rand(3, 3)
    assert M(j, k).indices == (j, k)
    check(M @ M(j, k), m @ m, M=m)
    check((M + 1)(j, k) @ M(k, i), (m + 1) @ m, M=m)
    with pytest.raises(RepeatedIndex):
        M(i, i)
    with pytest.raises(ArgumentError):
        M(i)
    with pytest.raises(SizeClash):
        M(i, L)
    with pytest.raises(TncError):
        M("i", "j")


def test_constants_need_values_of_their_shape() -> None:
    with pytest.raises(ShapeError):
        tnc.constant("c", I, value=np.ones(3))
    check(tnc.constant("c", I, value=[1.0, 2.0]) * 1, [1.0, 2.0])


def test_pad() -> None:
    check(A.pad(J, 1, 2), np.pad(a, ((0, 0), (1, 2))), **DATA)
    assert A.pad(J, 1, 2).shape == (2, 6)
    assert isinstance(A.pad(J, 1, 0), ex.Pad)


def test_astype() -> None:
    assert evaluate(A.astype("float32"), DATA).dtype == np.float32
    same(evaluate((A > 0).astype("float64"), DATA), (a > 0).astype(float))
