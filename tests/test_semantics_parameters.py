"""Parameters: identity, sharing axis by axis, initial values, names, buffers."""

import keyword

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_semantics_helpers import check, rand, same
from tncompiler.ir.errors import (
    ArgumentError,
    BadName,
    DTypeError,
    NameClash,
    ShapeError,
    TncError,
)

I, J, K = tnc.indices("i j k", i=2, j=3, k=4)


def numpy_of(expr, **options):
    return tnc.compile(expr, framework="numpy", dtype="float64", **options)


def test_axis_order_is_that_of_the_first_declaration() -> None:
    """its axis order is that of the first declaration, for ever"""
    f = numpy_of(tnc.param("A", I, J).transpose(J, I).sum(I))
    assert f.parameters["A"].shape == (2, 3)
    assert tnc.compile(tnc.param("A", I, J).transpose(J, I)).A.shape == (2, 3)


def test_rename_never_moves_data() -> None:
    """(`rename` never moves data)"""
    m = tnc.Index("m", 2)
    f = tnc.compile(tnc.param("A", I, J).rename({I: m}).transpose(J, m))
    assert f.A.shape == (2, 3)
    same(f().detach(), f.A.detach().T)


def test_naming_it_again_is_the_same_parameter_axis_by_axis() -> None:
    """Naming it again with other indices is the same parameter axis by axis"""
    i, j, k = tnc.indices("i j k", size=3)
    a = rand(3, 3)
    expr = tnc.param("A", i, j) @ tnc.param("A", j, k)
    f = numpy_of(expr)
    assert list(f.parameters) == ["A"]
    check(expr, a @ a, A=a)


def test_the_transposed_use() -> None:
    """`param("A", j, i)` after `param("A", i, j)` is its transposed use"""
    i, j = tnc.indices("i j", size=3)
    a = rand(3, 3)
    first, again = tnc.param("A", i, j), tnc.param("A", j, i)
    check(first + again, a + a.T, A=a)
    check(first @ again, (a * a.T).sum(), A=a)


def test_other_sizes_raise() -> None:
    """other sizes, dtype or init raise"""
    with pytest.raises(NameClash, match=r"\(2, 3\).*\(3, 2\)"):
        tnc.compile(tnc.param("A", I, J) * tnc.param("A", J, I))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"init": "zeros"},
        {"init": np.ones((2, 3))},
        {"init": lambda shape: np.ones(shape)},
    ],
    ids=["dtype", "name", "array", "callable"],
)
def test_other_dtype_or_init_raise(options) -> None:
    """other sizes, dtype or init raise"""
    with pytest.raises(NameClash, match="'A'"):
        tnc.compile(tnc.param("A", I, J) + tnc.param("A", I, J, **options))


def test_the_same_init_shares() -> None:
    def init(shape):
        return np.ones(shape)

    for given in ("zeros", np.ones((2, 3)), init):
        expr = tnc.param("A", I, J, init=given) + tnc.param("A", I, J, init=given)
        assert len(numpy_of(expr).parameters) == 1


def test_clashes_between_two_outputs_raise() -> None:
    with pytest.raises(NameClash):
        tnc.compile((tnc.param("A", I), tnc.param("A", J)))


def mps_of_32_sites():
    l, p, r = tnc.indices("l p r", l=3, p=2, r=3)
    core, state = tnc.param("A", l, p, r), tnc.param("edge", l)
    for n in range(32):
        bond, site = tnc.Index(f"b{n}", 3), tnc.Index(f"p{n}", 2)
        state = state @ core(state.indices[0], site, bond) @ tnc.input(f"x{n}", site)
    return state @ tnc.param("edge", state.indices[0])


def test_a_uniform_mps_of_32_sites() -> None:
    """a uniform MPS is one core named at every site"""
    f = numpy_of(mps_of_32_sites(), seed=0)
    assert set(f.parameters) == {"edge", "A"}
    a, edge, xs = rand(3, 2, 3), rand(3), rand(32, 2)
    expected = edge
    for x in xs:
        expected = expected @ np.einsum("lpr,p->lr", a, x)
    got = f(*xs, parameters={"A": a, "edge": edge})
    assert abs(got - expected @ edge) < 1e-9 * abs(expected @ edge)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_gradients_add_over_all_uses(backend: str) -> None:
    """Its gradients add over all uses."""
    a, edge, xs = rand(3, 2, 3), rand(3), rand(32, 2)
    copies = [torch.tensor(a, requires_grad=True) for _ in range(32)]
    ends = [torch.tensor(edge, requires_grad=True) for _ in range(2)]
    state = ends[0]
    for copy, x in zip(copies, xs, strict=True):
        state = state @ torch.einsum("lpr,p->lr", copy, torch.tensor(x))
    (state @ ends[1]).backward()
    f = tnc.compile(mps_of_32_sites(), backend=backend, dtype="float64")
    with torch.no_grad():
        f.A.copy_(torch.tensor(a))
        f.edge.copy_(torch.tensor(edge))
    f(*torch.tensor(xs)).backward()
    for got, parts in ((f.A.grad, copies), (f.edge.grad, ends)):
        expected = sum(part.grad for part in parts)
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


def test_calls_reindex_by_position() -> None:
    """`A(b0, p0, b1)` re-indexes by position"""
    i, j, k = tnc.indices("i j k", size=3)
    A = tnc.param("A", i, j)
    assert A(j, k).indices == (j, k)
    assert A(j, i) == tnc.param("A", j, i)
    assert A(i, j) is A


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("zeros", np.zeros((2, 3))),
        ("ones", np.ones((2, 3))),
        ("eye", np.eye(2, 3)),
        (np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3)),
        (lambda shape: np.full(shape, 7.0), np.full((2, 3), 7.0)),
        (lambda shape: torch.full(shape, 7.0), np.full((2, 3), 7.0)),
    ],
    ids=["zeros", "ones", "eye", "array", "callable", "torch callable"],
)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_kinds_of_init(init, expected, framework: str) -> None:
    """`init=` is a name, a callable or an array."""
    f = tnc.compile(tnc.param("A", I, J, init=init), framework=framework)
    got = f.parameters["A"] if framework == "numpy" else f.A.detach().numpy()
    same(got, expected)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_normal_init(framework: str) -> None:
    big = tnc.Index("n", 20_000)
    f = tnc.compile(tnc.param("A", big, init="normal"), framework=framework, seed=0)
    got = f.parameters["A"] if framework == "numpy" else f.A.detach().numpy()
    assert abs(got.std() - 1) < 0.05
    assert abs(got.mean()) < 0.05


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_an_init_array_is_copied(framework: str) -> None:
    value = np.ones((2, 3))
    expr = tnc.param("A", I, J, init=value)
    value[:] = 5
    f = tnc.compile(expr, framework=framework, dtype="float64")
    value[:] = 6
    got = f.parameters["A"] if framework == "numpy" else f.A.detach().numpy()
    same(got, np.ones((2, 3)))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("init", [lambda shape: np.ones(5), lambda shape: np.ones(())])
def test_an_init_of_another_shape_raises(framework: str, init) -> None:
    with pytest.raises(TncError, match="'A'"):
        tnc.compile(tnc.param("A", I, J, init=init), framework=framework)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_an_init_that_is_no_array_raises(framework: str) -> None:
    with pytest.raises(TncError, match="'A'"):
        tnc.compile(tnc.param("A", I, J, init=lambda shape: "text"), framework=framework)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_complex_init_of_a_real_parameter_raises(framework: str) -> None:
    with pytest.raises(DTypeError, match="'A'"):
        tnc.compile(tnc.param("A", I, init=np.ones(2) * 1j), framework=framework)


def test_an_init_array_of_another_shape_raises() -> None:
    with pytest.raises(ShapeError):
        tnc.param("A", I, J, init=np.ones((3, 2)))


@pytest.mark.parametrize(
    "init", ["xavier", "", 3, 1.5, [1, 2], object()], ids=lambda v: f"{type(v).__name__}-{v!r}"[:12]
)
def test_unknown_inits_raise(init) -> None:
    with pytest.raises(ArgumentError):
        tnc.param("A", I, init=init)


def test_constants_become_buffers() -> None:
    """`constant(name, *indices, value=…)` becomes a buffer."""
    c = np.arange(2.0)
    f = tnc.compile(tnc.constant("fixed.c", I, value=c) * tnc.input("x", I), dtype="float64")
    assert [name for name, _ in f.named_buffers()] == ["fixed.c"]
    assert list(f.parameters()) == []
    assert list(f.state_dict()) == ["fixed.c"]
    assert f.inputs == ("x",)
    same(f(torch.ones(2, dtype=torch.float64)), c)


def test_a_buffer_moves_with_the_module() -> None:
    f = tnc.compile(tnc.constant("c", I, value=np.arange(2)) * tnc.param("w", I, init="ones"))
    assert f.double()().dtype == torch.float64


def test_loading_a_buffer_changes_the_output() -> None:
    f = tnc.compile(tnc.constant("c", I, value=np.arange(2.0)) * 1)
    f.load_state_dict({"c": torch.full((2,), 5.0)})
    same(f(), np.full(2, 5.0))


def test_a_constant_keeps_its_integer_dtype() -> None:
    f = numpy_of(tnc.constant("c", I, value=np.array([1, 2])) * 1)
    assert f().dtype.kind == "i"


def test_dotted_names_become_nested_modules() -> None:
    """Leaf names are dotted ASCII identifiers and become nested modules"""
    f = tnc.compile(tnc.param("net.fc1.G", I) + tnc.param("net.fc2.G", I) + tnc.param("b", I))
    assert {name for name, _ in f.named_parameters()} == {"net.fc1.G", "net.fc2.G", "b"}
    assert isinstance(f.net.fc1, torch.nn.Module)
    assert f.net.fc1.G.shape == (2,)


def test_a_name_that_is_both_leaf_and_module_raises() -> None:
    with pytest.raises(NameClash):
        tnc.compile(tnc.param("a", I) + tnc.param("a.b", I))
    with pytest.raises(NameClash):
        tnc.compile(tnc.param("a.b", I) + tnc.param("a", I))


@pytest.mark.parametrize("name", [*keyword.kwlist, "a.class", "lambda.x"])
def test_keywords_raise(name: str) -> None:
    """Python keywords … raise"""
    for make in (tnc.param, tnc.input):
        with pytest.raises(BadName):
            make(name, I)


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "1a", "a b", "a-b", "é", "α", "a'", "a\n", "ａ", 3, None]
)
def test_names_that_are_no_identifiers_raise(name) -> None:
    """Leaf names are dotted ASCII identifiers"""
    for make in (tnc.param, tnc.input):
        with pytest.raises(BadName):
            make(name, I)
    with pytest.raises(BadName):
        tnc.constant(name, I, value=np.ones(2))


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "training",
        "parameters",
        "state_dict",
        "backend",
        "inputs",
        "source",
        "plan",
        "cost",
        "flops",
        "_parameters",
        "_dtype",
        "compilation",
        "to.x",
        "a.forward",
        "a.training",
        "reset_parameters",
        "_specialisations",
        "_owners",
        "T_destination",
        "explain",
        "draw",
        "compute_dtype",
    ],
)
def test_names_the_module_owns_raise(name: str) -> None:
    """names the module class owns raise"""
    with pytest.raises(NameClash, match=name.split(".")[-1]):
        tnc.compile(tnc.param(name, I))
    with pytest.raises(NameClash):
        tnc.compile(tnc.constant(name, I, value=np.ones(2)) * 1)


@pytest.mark.parametrize("name", ["np", "torch", "print", "self", "t0", "t1", "x0", "forward", "b"])
def test_names_that_source_uses_work_as_inputs(name: str) -> None:
    """Names of leaves never collide with names of the generated source."""
    x = rand(2)
    check(
        tnc.tanh(tnc.input(name, I)) + tnc.param("w", I),
        np.tanh(x) + 1,
        **{name: x, "w": np.ones(2)},
    )


@pytest.mark.parametrize("name", ["np", "torch", "print", "t0", "t1", "i", "j"])
def test_names_that_source_uses_work_as_parameters(name: str) -> None:
    f = tnc.compile(tnc.tanh(tnc.param(name, I, J)).sum(J), backend="torch")
    f().sum().backward()
    value = getattr(f, name)
    assert torch.allclose(value.grad, 1 - torch.tanh(value.detach()) ** 2)


def test_dotted_and_underscored_names_stay_apart() -> None:
    x, y = rand(2), rand(2, seed=1)
    check(tnc.input("a.b", I) - tnc.input("a_b", I), x - y, **{"a.b": x, "a_b": y})


def test_scalar_parameters() -> None:
    f = tnc.compile(tnc.param("s") * tnc.input("x", I), dtype="float64")
    f(torch.ones(2, dtype=torch.float64)).sum().backward()
    assert f.s.shape == ()
    same(f.s.grad, 2.0)


def test_complex_parameters() -> None:
    f = tnc.compile(tnc.param("A", I, J, dtype="complex64"), seed=0)
    assert f.A.dtype == torch.complex64
    assert f.A.imag.abs().min() > 0
    g = tnc.compile(tnc.param("A", I, J, dtype="complex64"), framework="numpy", seed=0)
    assert np.abs(g.parameters["A"].imag).min() > 0


def test_integer_parameters_are_not_trained() -> None:
    f = tnc.compile(tnc.param("n", I, dtype="int64", init="ones") * 2)
    assert not f.n.requires_grad
    assert f().tolist() == [2, 2]
