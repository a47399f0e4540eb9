"""Index, size: the sentences of SEMANTICS about named indices and their sizes."""

import ast

import numpy as np
import pytest
import sympy

import tncompiler as tnc
from tests.test_semantics_helpers import check, evaluate, rand, same
from tncompiler.ir.errors import (
    BadName,
    BadSize,
    RepeatedIndex,
    SizeClash,
    TncError,
    UnboundSize,
    UnknownIndex,
)

ODD_NAMES = [
    "a'b;import os",
    "α β",
    '"""',
    "\\",
    "{0}",
    "%s",
    "#",
    "np",
    "self",
    "class",
    "__builtins__",
    "a.b",
    "1",
    "-",
    "b, c",
    "日本",
    "i" * 300,
    "t0",
    "x",
    "𝔘",
]


def test_indices_gives_sizes_by_name() -> None:
    """`tnc.indices("b i r", i=8)` gives sizes; what has none gets a symbol of its own."""
    b, i, r = tnc.indices("b i r", i=8)
    assert i.size == 8
    assert (b.size, r.size) == (tnc.size("b"), tnc.size("r"))
    assert b.size != r.size


def test_a_missing_size_is_a_positive_integer_symbol() -> None:
    """sizes not given are symbols: b.size == sympy.Symbol("b", integer=True, positive=True)"""
    (b,) = tnc.indices("b")
    assert b.size == sympy.Symbol("b", integer=True, positive=True)
    assert b.size != sympy.Symbol("b")


def test_size_makes_a_size_to_share() -> None:
    """`D = tnc.size("D")` makes a size to share: `tnc.indices("b0 b1 b2", size=D)`."""
    D = tnc.size("D")
    b0, b1, b2 = tnc.indices("b0 b1 b2", size=D)
    assert {b0.size, b1.size, b2.size} == {D}
    assert len({b0, b1, b2}) == 3


def test_size_of_all_and_size_of_one() -> None:
    D = tnc.size("D")
    a, b = tnc.indices("a b", size=D, b=3)
    assert (a.size, b.size) == (D, 3)


@pytest.mark.parametrize("text", ["i j k", "i, j, k", "i,j,k", "  i   j k "])
def test_names_are_separated_by_blanks_or_commas(text: str) -> None:
    assert [index.name for index in tnc.indices(text)] == ["i", "j", "k"]


def test_indices_returns_a_tuple_even_for_one() -> None:
    assert tnc.indices("i") == (tnc.Index("i"),)


def test_indices_are_equal_when_name_and_size_are_equal() -> None:
    """an index: equal when name and size are equal"""
    assert tnc.Index("i", 4) == tnc.Index("i", 4)
    assert hash(tnc.Index("i", 4)) == hash(tnc.Index("i", 4))
    assert tnc.Index("i", 4) != tnc.Index("i", 5)
    assert tnc.Index("i", 4) != tnc.Index("j", 4)
    assert tnc.Index("i") == tnc.Index("i")


def test_one_name_with_two_sizes_is_an_error() -> None:
    """one name with two sizes in one network is an error"""
    a, b = tnc.Index("i", 3), tnc.Index("i", 4)
    with pytest.raises(SizeClash, match=r"'i' has size 3 on A .axis 0. but size 4 on B"):
        tnc.contract(tnc.input("A", a), tnc.input("B", b))


def test_one_name_with_two_sizes_on_one_leaf_is_an_error() -> None:
    """one name with two sizes in one network is an error"""
    with pytest.raises(SizeClash):
        tnc.input("A", tnc.Index("i", 3), tnc.Index("i", 4))


@pytest.mark.parametrize("op", [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a / b])
def test_one_name_with_two_sizes_is_an_error_in_maps(op) -> None:
    """one name with two sizes in one network is an error"""
    a = tnc.input("A", tnc.Index("i", 3))
    with pytest.raises(SizeClash):
        op(a, tnc.input("B", tnc.Index("i", 4)))


def test_clashes_concern_indices_free_in_one_scope() -> None:
    """Clashes of size concern indices that are free in one scope."""
    i, r3, r4 = tnc.Index("i", 2), tnc.Index("r", 3), tnc.Index("r", 4)
    left = tnc.input("A", i, r3) @ tnc.input("B", r3)
    right = tnc.input("C", i, r4) @ tnc.input("D", r4)
    A, B, C, D = rand(2, 3), rand(3), rand(2, 4), rand(4)
    check(left * right, (A @ B) * (C @ D), A=A, B=B, C=C, D=D)


def test_a_symbol_and_a_number_of_one_name_clash() -> None:
    with pytest.raises(SizeClash):
        tnc.input("A", tnc.Index("i")) + tnc.input("B", tnc.Index("i", 4))


@pytest.mark.parametrize(
    "key", [tnc.Index("r"), tnc.size("r"), "r"], ids=["Index", "symbol", "string"]
)
def test_sizes_takes_index_symbol_and_string(key) -> None:
    """`sizes=` takes an Index, a size symbol or a string everywhere."""
    i, r = tnc.indices("i r", i=3)
    f = tnc.compile(tnc.param("G", i, r), framework="numpy", sizes={key: 5}, seed=0)
    assert f.parameters["G"].shape == (3, 5)
    assert f.cost(sizes={key: 5}).flops == 0
    assert tnc.plan(tnc.param("G", i, r), sizes={key: 5}).flops == 0


@pytest.mark.parametrize(
    "key", [tnc.Index("b0", tnc.size("D")), tnc.size("D"), "D", "b0", "b1"], ids=str
)
def test_sizes_of_a_shared_size(key) -> None:
    """`sizes=` takes an Index, a size symbol or a string everywhere."""
    b0, b1 = tnc.indices("b0 b1", size=tnc.size("D"))
    f = tnc.compile(tnc.param("G", b0, b1), framework="numpy", sizes={key: 4}, seed=0)
    assert f.parameters["G"].shape == (4, 4)


@pytest.mark.parametrize("key", [tnc.Index("b"), tnc.size("b"), "b"], ids=["Index", "sym", "str"])
@pytest.mark.parametrize("method", ["cost", "plan", "source", "program"])
def test_inspection_takes_all_kinds_of_keys(key, method: str) -> None:
    """`sizes=` takes an Index, a size symbol or a string everywhere."""
    b, i, j = tnc.indices("b i j", i=3, j=4)
    f = tnc.compile(tnc.input("x", b, i) @ tnc.param("W", i, j), framework="numpy", seed=0)
    reference = getattr(f, method)(sizes={"b": 7})
    assert getattr(f, method)(sizes={key: 7}) == reference


def test_cost_at_a_size() -> None:
    b, i, j = tnc.indices("b i j", i=3, j=4)
    f = tnc.compile(tnc.input("x", b, i) @ tnc.param("W", i, j), framework="numpy", seed=0)
    assert f.cost(sizes={b: 7}).flops == 2 * 7 * 3 * 4
    assert f.flops == 2 * 3 * 4 * b.size


def test_shared_sizes_are_checked_against_each_other() -> None:
    """an input's may stay free …, read from the arrays of each call, checked against each other"""
    i, j = tnc.indices("i j", size=tnc.size("D"))
    f = tnc.compile(tnc.input("x", i, j), framework="numpy")
    assert f(np.zeros((3, 3), "float32")).shape == (3, 3)
    with pytest.raises(SizeClash, match=r"size 3 .*4"):
        f(np.zeros((3, 4), "float32"))


def test_free_sizes_may_differ_between_calls() -> None:
    b, i = tnc.indices("b i")
    f = tnc.compile(tnc.input("x", b, i) @ tnc.input("y", i), framework="numpy", dtype="float64")
    for m, n in [(1, 1), (2, 3), (130, 2), (0, 4), (3, 0), (2, 3)]:
        x, y = rand(m, n), rand(n)
        same(f(x, y), x @ y)


def test_sizes_may_be_expressions_of_others() -> None:
    D = tnc.size("D")
    i, j = tnc.Index("i", D), tnc.Index("j", 2 * D)
    f = tnc.compile(tnc.param("G", i, j), framework="numpy", sizes={"D": 3}, seed=0)
    assert f.parameters["G"].shape == (3, 6)


def test_sizes_by_a_derived_index() -> None:
    D = tnc.size("D")
    i, j = tnc.Index("i", D), tnc.Index("j", 2 * D)
    f = tnc.compile(tnc.param("G", i, j), framework="numpy", sizes={j: 6}, seed=0)
    assert f.parameters["G"].shape == (3, 6)


def test_a_sizes_value_without_whole_solution_raises() -> None:
    j = tnc.Index("j", 2 * tnc.size("D"))
    with pytest.raises(TncError, match="7"):
        tnc.compile(tnc.param("G", j), framework="numpy", sizes={j: 7})


def test_sizes_that_contradict_each_other_raise() -> None:
    D = tnc.size("D")
    i, j = tnc.Index("i", D), tnc.Index("j", D)
    with pytest.raises(TncError, match=r"3.*4|4.*3"):
        tnc.compile(tnc.param("G", i, j), framework="numpy", sizes={i: 3, j: 4})


def test_a_parameter_needs_its_sizes() -> None:
    """A parameter's sizes must be known here"""
    i, r = tnc.indices("i r", i=3)
    with pytest.raises(UnboundSize, match=r"'G'.*'r'"):
        tnc.compile(tnc.param("G", i, r), framework="numpy")


def test_sizes_of_an_unknown_name_raise() -> None:
    with pytest.raises(UnknownIndex, match="'q'"):
        tnc.compile(tnc.input("x", tnc.Index("i")), framework="numpy", sizes={"q": 3})


def test_sizes_of_an_unknown_index_raise() -> None:
    with pytest.raises(UnknownIndex, match="'q'"):
        tnc.compile(tnc.input("x", tnc.Index("i")), framework="numpy", sizes={tnc.Index("q"): 3})


def test_sizes_of_an_unknown_symbol_raise() -> None:
    with pytest.raises(UnknownIndex, match="'q'"):
        tnc.compile(tnc.input("x", tnc.Index("i")), framework="numpy", sizes={tnc.size("q"): 3})


def test_a_known_size_cannot_be_given_otherwise() -> None:
    with pytest.raises(SizeClash, match="3"):
        tnc.compile(tnc.input("x", tnc.Index("i", 4)), framework="numpy", sizes={"i": 3})


@pytest.mark.parametrize("size", [-1, 1.5, "no size!", "__import__('os')", True, None.__class__])
def test_bad_sizes_raise(size) -> None:
    with pytest.raises(BadSize):
        tnc.Index("i", size)


@pytest.mark.parametrize("size", [sympy.Symbol("x"), sympy.Rational(1, 2), sympy.pi, sympy.oo])
def test_sympy_that_is_no_size_raises(size) -> None:
    with pytest.raises(BadSize):
        tnc.Index("i", size)


@pytest.mark.parametrize("size", [np.int64(4), sympy.Integer(4), "4", "2 * 2", 4])
def test_sizes_of_many_types_are_equal(size) -> None:
    assert tnc.Index("i", size) == tnc.Index("i", 4)
    assert tnc.Index("i", size).size == 4
    assert type(tnc.Index("i", size).size) is int


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x00", 3, None, b"i", "\u200b"])
def test_unprintable_names_raise(name) -> None:
    """Index names may be any printable text"""
    with pytest.raises(BadName):
        tnc.Index(name, 3)


@pytest.mark.parametrize("text", ["", "  ", 3, None])
def test_indices_without_names_raise(text) -> None:
    with pytest.raises(BadName):
        tnc.indices(text)


def test_a_size_for_no_index_raises() -> None:
    with pytest.raises(UnknownIndex, match="'k'"):
        tnc.indices("i j", k=3)


def test_an_index_twice_on_a_leaf_raises() -> None:
    i = tnc.Index("i", 3)
    with pytest.raises(RepeatedIndex, match="delta"):
        tnc.input("A", i, i)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_printable_name_computes(name: str) -> None:
    """Index names may be any printable text; generated source uses vetted stand-ins."""
    i, j = tnc.Index(name, 3), tnc.Index(name + "'", 4)
    x, w = rand(2, 3), rand(3, 4)
    b = tnc.Index("b")
    expr = tnc.relu(tnc.input("x", b, i) @ tnc.param("w", i, j)).max(j)
    check(expr, np.maximum(x @ w, 0).max(1), x=x, w=w)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_printable_name_may_be_a_free_size(name: str) -> None:
    """Index names may be any printable text; generated source uses vetted stand-ins."""
    i = tnc.Index(name)
    x = rand(5)
    check(tnc.input("x", i).mean(i), x.mean(), x=x)
    assert evaluate(
        tnc.input("x", i).split(i, (tnc.Index("p", 5), tnc.Index("q"))), {"x": x}
    ).shape == (5, 1)


@pytest.mark.parametrize("name", [n for n in ODD_NAMES if not n.isidentifier() and len(n) > 3])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_odd_names_never_reach_the_source(name: str, backend: str) -> None:
    """Index names may be any printable text; generated source uses vetted stand-ins."""
    i, j = tnc.Index(name), tnc.Index(name + "!", 4)
    x = tnc.input("x", i, j)
    expr = (tnc.relu(x) * x.mean(i)).split(i, (tnc.Index(name + "?", 1), tnc.Index("q" + name)))
    f = tnc.compile(expr, backend=backend)
    for part in ("forward", "backward"):
        source = f.source(part=part, backend=backend)
        assert name not in source
        ast.parse(source)


def test_a_hostile_name_is_not_executed(tmp_path) -> None:
    """Index names may be any printable text; generated source uses vetted stand-ins."""
    target = tmp_path / "owned"
    i = tnc.Index(f"i); open({str(target)!r}, 'w'); (")
    x = rand(3)
    check(tnc.input("x", i).sum(), x.sum(), x=x)
    assert not target.exists()


def test_more_than_52_indices() -> None:
    many = tnc.indices(" ".join(f"k{n}" for n in range(60)), size=1)
    x = rand(*[1] * 30)
    y = rand(*[1] * 30)
    expr = tnc.input("x", *many[:30]) * tnc.input("y", *many[30:])
    check(expr.sum(), x.sum() * y.sum(), x=x, y=y)
