"""Scope: an index that a contraction sums is bound; nothing is captured or shared by accident."""

import threading

import numpy as np
import pytest

import tncompiler as tnc
from tests.test_semantics_helpers import check, evaluate, rand, same
from tncompiler.ir.errors import BadName, NameClash
from tncompiler.ir.expressions import walk
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes


def tt_layer(x, name: str, rank: int, ins, outs):
    """A TT linear layer whose bond index is always called r."""
    r = tnc.Index("r", rank)
    with tnc.scope(name):
        G1 = tnc.param("G1", ins[0], outs[0], r)
        G2 = tnc.param("G2", r, ins[1], outs[1])
    return x @ (G1 @ G2)


def test_two_tt_layers_of_different_rank() -> None:
    """Two TT layers of different rank in one expression is the first test"""
    b, i1, i2, h1, h2, o1, o2 = tnc.indices("b i1 i2 h1 h2 o1 o2", b=5, size=3)
    x = tnc.input("x", b, i1, i2)
    hidden = tnc.tanh(tt_layer(x, "fc1", 2, (i1, i2), (h1, h2)))
    y = tt_layer(hidden, "fc2", 4, (h1, h2), (o1, o2))
    shapes = {"fc1.G1": (3, 3, 2), "fc1.G2": (2, 3, 3), "fc2.G1": (3, 3, 4), "fc2.G2": (4, 3, 3)}
    arrays = {name: rand(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    arrays["x"] = rand(5, 3, 3, seed=9)
    h = np.tanh(np.einsum("bij,ihr,rjg->bhg", arrays["x"], arrays["fc1.G1"], arrays["fc1.G2"]))
    expected = np.einsum("bij,ihr,rjg->bhg", h, arrays["fc2.G1"], arrays["fc2.G2"])
    assert [leaf.name for leaf in y.leaves] == ["x", *shapes]
    check(y, expected, **arrays)


def test_two_linear_tt_layers_of_different_rank() -> None:
    """Two TT layers of different rank in one expression: also where both fuse into one network."""
    b, i1, i2, h1, h2, o1, o2 = tnc.indices("b i1 i2 h1 h2 o1 o2", b=5, size=3)
    x = tnc.input("x", b, i1, i2)
    y = tt_layer(tt_layer(x, "fc1", 2, (i1, i2), (h1, h2)), "fc2", 4, (h1, h2), (o1, o2))
    a = [rand(5, 3, 3), rand(3, 3, 2), rand(2, 3, 3), rand(3, 3, 4), rand(4, 3, 3)]
    expected = np.einsum("bij,ihr,rjg,hos,sgp->bop", *a)
    names = ["x", "fc1.G1", "fc1.G2", "fc2.G1", "fc2.G2"]
    check(y, expected, **dict(zip(names, a, strict=True)))


def test_a_nested_sum_keeps_two_js() -> None:
    """`(A(i,j) @ B(j,k)) @ C(k,j)` keeps two different j's"""
    i, j, k = tnc.indices("i j k", i=2, j=3, k=4)
    A, B, C = tnc.input("A", i, j), tnc.input("B", j, k), tnc.input("C", k, j)
    a, b, c = rand(2, 3), rand(3, 4), rand(4, 3)
    expr = (A @ B) @ C
    assert expr.indices == (i, j)
    check(expr, a @ b @ c, A=a, B=b, C=c)


@pytest.mark.parametrize("outer", ["contract", "times", "map", "sum"])
def test_a_bound_index_is_not_captured(outer: str) -> None:
    """A pass that would capture an index renames the bound one"""
    j, k = tnc.indices("j k", j=3, k=4)
    A, B, C = tnc.input("A", j, k), tnc.input("B", j), tnc.input("C", j)
    a, b, c = rand(3, 4), rand(3), rand(3, seed=5)
    inner = A @ B  # sums j
    expr = {
        "contract": lambda: tnc.contract(inner, C, out=(k, j)),
        "times": lambda: inner * C,
        "map": lambda: tnc.maximum(inner * tnc.ones(j), C * tnc.ones(k)).transpose(k, j),
        "sum": lambda: (inner * C).sum(j),
    }[outer]()
    expected = {
        "contract": np.outer(b @ a, c),
        "times": np.outer(b @ a, c),
        "map": np.maximum((b @ a)[:, None], c[None, :]),
        "sum": (b @ a) * c.sum(),
    }[outer]
    check(expr, expected, A=a, B=b, C=c)


def test_a_square_of_a_sum_is_no_sum_of_squares() -> None:
    """An index that a contraction sums is *bound*: local to that contraction."""
    i = tnc.Index("i", 4)
    s = tnc.input("x", i).sum(i)
    x = rand(4)
    check(s * s, x.sum() ** 2, x=x)
    check(tnc.contract(s, s, s), x.sum() ** 3, x=x)


def test_three_levels_of_the_same_bound_name() -> None:
    """An index that a contraction sums is *bound*: local to that contraction."""
    i, j = tnc.indices("i j", size=3)
    A = tnc.input("A", i, j)
    expr = A.sum(j)
    for _ in range(3):
        expr = (expr.rename({i: j}) @ A).rename({i: j}).rename({j: i})
    a = rand(3, 3)
    expected = a.sum(1)
    for _ in range(3):
        expected = a @ expected
    check(expr, expected, A=a)


def test_a_bound_size_may_differ_from_a_free_one_of_that_name() -> None:
    """Outside, only `expr.indices` (free, ordered) is visible."""
    r2, r5, i = tnc.Index("r", 2), tnc.Index("r", 5), tnc.Index("i", 3)
    inner = tnc.input("A", i, r2) @ tnc.input("B", r2)
    expr = inner * tnc.input("C", r5)
    assert expr.indices == (i, r5)
    a, b, c = rand(3, 2), rand(2), rand(5)
    check(expr, np.outer(a @ b, c), A=a, B=b, C=c)


def test_a_bound_reduction_does_not_capture() -> None:
    i, j = tnc.indices("i j", size=3)
    A = tnc.input("A", i, j)
    a = rand(3, 3)
    check(A.max(j) * A.max(i), np.outer(a.max(1), a.max(0)), A=a)
    check(A.max(j).rename({i: j}) @ A, a @ a.max(1), A=a)


def test_a_split_index_may_take_a_bound_name() -> None:
    i, j, k = tnc.Index("i", 3), tnc.Index("j", 2), tnc.Index("k", 4)
    x = tnc.input("x", i, k)
    v = rand(3, 4)
    expr = x.sum(i).split(k, (j, tnc.Index("i", 2)))
    check(expr, v.sum(0).reshape(2, 2), x=v)


@pytest.mark.parametrize("name", ["r", "s", "i"])
def test_equality_is_up_to_bound_names(name: str) -> None:
    """Equality, common subexpressions and plan digests work up to the names of bound indices."""
    i, j, r, other = *tnc.indices("i j r", size=3), tnc.Index(name + "2", 3)
    A, B = tnc.param("A", i, r), tnc.param("B", r, j)
    assert A(i, other) @ B(other, j) == A @ B
    assert hash(A @ B) == hash(A(i, other) @ B(other, j))


def test_equality_sees_free_names_and_order() -> None:
    i, j, r = tnc.indices("i j r", size=3)
    A, B = tnc.param("A", i, r), tnc.param("B", r, j)
    assert A(j, r) @ B(r, i) != A @ B
    assert (A @ B).transpose(j, i) != A @ B
    assert A(r, i) @ B(r, j) != A @ B
    assert A @ B != B @ A
    assert A.max(r) != A.rename({r: j}).min(j)
    assert A.max(r) == A.rename({r: j}).max(j)


def test_equality_ignores_where_it_was_written() -> None:
    i, j = tnc.indices("i j", size=3)
    first = tnc.relu(tnc.input("x", i, j))
    second = tnc.relu(tnc.input("x", i, j))
    assert first == second
    assert first.origin != second.origin


def steps_of(*outputs):
    return run_passes(lower(outputs), LOGICAL_PASSES).steps


def test_common_subexpressions_are_up_to_bound_names() -> None:
    """Equality, common subexpressions and plan digests work up to the names of bound indices."""
    i, j, r, s = tnc.indices("i j r s", size=3)
    A, B = tnc.param("A", i, r), tnc.param("B", r, j)
    one = tnc.relu(A @ B)
    two = tnc.relu(A(i, s) @ B(s, j))
    assert len(steps_of(one, two)) == len(steps_of(one))


def test_common_subexpressions_do_not_join_a_transpose() -> None:
    i, j = tnc.indices("i j", size=3)
    A = tnc.input("A", i, j)
    a = rand(3, 3)
    check(tnc.exp(A) + tnc.exp(A(j, i)), np.exp(a) + np.exp(a).T, A=a)


def test_plan_digests_are_up_to_bound_names() -> None:
    """Equality, common subexpressions and plan digests work up to the names of bound indices."""
    i, j, r, s = tnc.indices("i j r s", size=3)
    A, B = tnc.param("A", i, r), tnc.param("B", r, j)
    assert tnc.plan(A @ B).digest == tnc.plan(A(i, s) @ B(s, j)).digest
    assert tnc.plan(A @ B).digest != tnc.plan(A(r, i) @ B(r, j)).digest


def test_a_plan_fits_an_expression_with_other_bound_names() -> None:
    i, j, r, s = tnc.indices("i j r s", size=3)
    A, B = tnc.input("A", i, r), tnc.input("B", r, j)
    f = tnc.compile(A(i, s) @ B(s, j), framework="numpy", dtype="float64", plan=tnc.plan(A @ B))
    a, b = rand(3, 3), rand(3, 3, seed=1)
    same(f(a, b), a @ b)


def test_scope_prefixes_leaf_names() -> None:
    """`with tnc.scope("fc1"):` … prefix leaf names (`fc1.G1`)"""
    i = tnc.Index("i", 3)
    with tnc.scope("fc1"):
        names = [
            tnc.param("G1", i).name,
            tnc.input("x", i).name,
            tnc.constant("c", i, value=np.ones(3)).name,
        ]
    assert names == ["fc1.G1", "fc1.x", "fc1.c"]
    assert tnc.param("G1", i).name == "G1"


def test_scopes_nest_and_end_after_errors() -> None:
    i = tnc.Index("i", 3)
    with pytest.raises(RuntimeError), tnc.scope("a"), tnc.scope("b.c"):
        assert tnc.param("G", i).name == "a.b.c.G"
        raise RuntimeError
    assert tnc.param("G", i).name == "G"


def test_scopes_are_local_to_a_thread() -> None:
    names = []
    i = tnc.Index("i", 3)
    with tnc.scope("outer"):
        thread = threading.Thread(target=lambda: names.append(tnc.param("G", i).name))
        thread.start()
        thread.join()
    assert names == ["G"]


@pytest.mark.parametrize("name", ["", "a b", "a..b", ".a", "class", "1a", "a'b", 3, None])
def test_bad_scope_names_raise(name) -> None:
    with pytest.raises(BadName), tnc.scope(name):
        pass


def test_two_layers_of_one_format_never_share_by_accident() -> None:
    """so two layers of one format never share by accident"""
    i, j = tnc.indices("i j", size=3)
    with tnc.scope("a"):
        first = tnc.param("G", i, j)
    with tnc.scope("b"):
        second = tnc.param("G", i, j)
    f = tnc.compile(first + second, framework="numpy", seed=0)
    assert set(f.parameters) == {"a.G", "b.G"}


def test_two_layers_of_different_rank_without_scope_clash() -> None:
    """so two layers of one format never share by accident"""
    i = tnc.Index("i", 3)
    first = tnc.param("G", i, tnc.Index("r", 2)).sum("r")
    second = tnc.param("G", i, tnc.Index("r", 3)).sum("r")
    with pytest.raises(NameClash, match="'G'"):
        tnc.compile(first + second)


@pytest.mark.parametrize("two", [tnc.param, tnc.input])
def test_a_parameter_and_an_input_of_one_name_clash(two) -> None:
    i = tnc.Index("i", 3)
    other = tnc.constant("G", i, value=np.ones(3))
    with pytest.raises(NameClash, match="'G'"):
        tnc.compile(two("G", i) + other)


def test_constants_of_one_name_with_other_values_clash() -> None:
    i = tnc.Index("i", 3)
    one, two = (tnc.constant("c", i, value=np.full(3, v)) for v in (1.0, 2.0))
    with pytest.raises(NameClash, match="'c'"):
        tnc.compile(one + two)
    assert evaluate(one + one, {}).tolist() == [2.0, 2.0, 2.0]


def test_leaves_are_told_apart_by_value_in_equality() -> None:
    i = tnc.Index("i", 3)
    one, two = (tnc.constant("c", i, value=np.full(3, v)) for v in (1.0, 2.0))
    assert one != two
    assert one == tnc.constant("c", i, value=np.full(3, 1.0))


def test_a_constant_keeps_the_value_it_was_made_with() -> None:
    i = tnc.Index("i", 3)
    value = np.ones(3)
    c = tnc.constant("c", i, value=value)
    value[:] = 5
    check(c * 2, np.full(3, 2.0))


def test_expressions_are_immutable() -> None:
    """Expressions are immutable and lazy"""
    x = tnc.input("x", tnc.Index("i", 3))
    for node in walk(tnc.relu(x).sum()):
        with pytest.raises(AttributeError):
            node.indices = ()
        with pytest.raises((AttributeError, TypeError)):  # TypeError: slots in CPython 3.11
            node.anything = 1


def test_expressions_are_lazy() -> None:
    """nothing is computed until compiled"""
    big = tnc.Index("big", 10**9)
    t = tnc.input("t", big) * tnc.ones(tnc.Index("k", 10**9))
    assert t.shape == (10**9, 10**9)
    assert tnc.delta(big, tnc.Index("c", 10**9)).ndim == 2
