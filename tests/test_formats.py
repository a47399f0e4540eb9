"""Formats as networks: every entry of FORMATS, by table. Decomposition: test_formats_decompose."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sympy
import torch

import tncompiler as tnc
from tncompiler import formats
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.search import full_ranks
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

SHAPES: list[Shapes] = [
    ((6,), (4,)),
    ((4, 4), (4, 4)),
    ((3, 4), (2, 5)),
    ((2, 3, 2), (4, 3)),
    ((5,), (2, 3)),
    ((1, 3), (3, 1)),
]
ONLY: dict[str, tuple[int, int]] = {"Monarch": (2, 2)}  # numbers of modes that a format is for


def make(name: str, rank: Any = None, **options: Any) -> Format:
    """A format of the table; Custom needs a network, a low-rank one here."""
    if name == "Custom":
        return formats.Custom(low_rank(3 if rank is None else rank))
    made: Format = getattr(formats, name)(rank=rank, **options)
    return made


def low_rank(rank: Any) -> Any:
    bond = tnc.Index("bond", rank)
    return lambda ins, outs: tnc.param("A", *ins, bond) @ tnc.param("B", bond, *outs)


def fitting(name: str, shapes: list[Shapes] | None = None) -> list[Shapes]:
    """The shapes that a format is for."""
    counts = ONLY.get(name)
    return [s for s in shapes or SHAPES if counts in (None, (len(s[0]), len(s[1])))]


def cases() -> Iterator[Any]:
    for name in formats.FORMATS:
        for shapes in fitting(name):
            yield pytest.param(name, *shapes, id=f"{name}-{shapes[0]}-{shapes[1]}")


def full(name: str, ins: tuple[int, ...], outs: tuple[int, ...]) -> Format:
    """The format with the ranks at which it holds every weight."""
    if name == "Custom":
        return make(name, min(math.prod(ins), math.prod(outs)))
    ranks = full_ranks(make(name), Modes.of(ins, outs))
    return make(name, ranks or None)


def random_cores(network: Expr, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {leaf.name: rng.standard_normal([int(n) for n in leaf.shape]) for leaf in network.leaves}


def oracle(network: Expr, cores: dict[str, np.ndarray]) -> np.ndarray:
    """The weight by numpy.einsum over all cores at once; bound indices have names of their own."""
    numbers: dict[str, int] = {}
    operands: list[Any] = []
    for leaf in network.leaves:
        labels = [numbers.setdefault(index.name, len(numbers)) for index in leaf.indices]
        operands += [cores[leaf.name], labels]
    return np.einsum(*operands, [numbers[index.name] for index in network.indices])


# ---------------------------------------------------------------------------- the network


@pytest.mark.parametrize("name, ins, outs", [*cases()])
def test_network_has_the_modes_in_order_and_named_cores(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...]
) -> None:
    network = make(name, 2, clamp=True).network(ins, outs)
    assert network.shape == (*ins, *outs)
    wanted = [f"i{k + 1}" for k in range(len(ins))] + [f"o{k + 1}" for k in range(len(outs))]
    assert [index.name for index in network.indices] == wanted
    leaves = network.leaves
    assert all(leaf.kind == "param" for leaf in leaves)
    assert len({leaf.name for leaf in leaves}) == len(leaves)
    prefixed = make(name, 2, clamp=True).network(ins, outs, name="fc")
    assert [leaf.name for leaf in prefixed.leaves] == [f"fc.{leaf.name}" for leaf in leaves]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_indices_serve_as_modes(name: str) -> None:
    ins, outs = fitting(name, [((4, 3), (2, 5)), ((4,), (3,))])[0]
    a = tuple(tnc.Index(f"r{k + 1}", n) for k, n in enumerate(ins))  # names that bonds would take
    b = tuple(tnc.Index(f"p{k + 1}", n) for k, n in enumerate(outs))
    network = make(name, 2, clamp=True).network(a, b)
    assert network.indices == (*a, *b)
    cores = random_cores(network)
    plain = make(name, 2, clamp=True).network(ins, outs)
    np.testing.assert_allclose(oracle(network, cores), oracle(plain, cores))


@pytest.mark.parametrize("name, ins, outs", [*cases()])
def test_compiled_layer_agrees_with_dense_product(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...]
) -> None:
    network = make(name, 2, clamp=True).network(ins, outs)
    batch = tnc.Index("batch")
    x = tnc.input("x", batch, *network.indices[: len(ins)])
    layer = tnc.compile(x @ network, dtype="float64", seed=1)
    cores = {k: v.detach().numpy() for k, v in layer.named_parameters()}
    names = [leaf.name for leaf in network.leaves]
    weight = torch.from_numpy(oracle(network, dict(zip(names, map(cores.get, names), strict=True))))
    data = torch.randn(3, *ins, dtype=torch.float64, requires_grad=True)
    dense = torch.tensordot(data, weight, dims=len(ins))
    out = layer(data)
    torch.testing.assert_close(out, dense)
    cotangent = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, data, cotangent)
    (wanted,) = torch.autograd.grad(dense, data, cotangent)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_gradients_of_cores_agree_with_einsum(name: str) -> None:
    ins, outs = fitting(name, [((4, 3), (2, 5))])[0]
    network = make(name, 2, clamp=True).network(ins, outs)
    layer = tnc.compile(network, dtype="float64", seed=1)
    numbers: dict[str, int] = {}
    operands: list[Any] = []
    copies = {}
    for leaf in network.leaves:
        labels = [numbers.setdefault(index.name, len(numbers)) for index in leaf.indices]
        copies[leaf.name] = layer.get_parameter(leaf.name).detach().clone().requires_grad_()
        operands += [copies[leaf.name], labels]
    dense = torch.einsum(*operands, [numbers[index.name] for index in network.indices])
    cotangent = torch.randn_like(dense)
    dense.backward(cotangent)
    layer().backward(cotangent)
    for key, copy in copies.items():
        torch.testing.assert_close(layer.get_parameter(key).grad, copy.grad)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_two_layers_of_different_ranks_in_one_expression(name: str) -> None:
    ins, outs = fitting(name, [((4, 3), (3, 4))])[0]
    first = make(name, 2).network(ins, outs, name="a")
    middle = first.indices[len(ins) :]
    last = tuple(tnc.Index(f"y{k}", n) for k, n in enumerate(ins))
    second = make(name, 3).network(middle, last, name="b")
    both = first @ second
    value = tnc.compile(both, framework="numpy", dtype="float64", seed=0)
    cores = {k: np.asarray(v) for k, v in value.parameters.items()}
    left, right = oracle(first, cores), oracle(second, cores)
    np.testing.assert_allclose(value(), np.tensordot(left, right, len(outs)), atol=1e-12)


# ---------------------------------------------------------------------------- counting


@pytest.mark.parametrize("name, ins, outs", [*cases()])
def test_parameters_are_the_cores_sizes(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...]
) -> None:
    for rank in (1, 2, 3, 7):
        format = make(name, rank, clamp=True)
        cores = random_cores(format.network(ins, outs))
        assert format.parameters(ins, outs) == sum(core.size for core in cores.values())


@pytest.mark.parametrize("name", formats.FORMATS)
def test_symbolic_count_equals_counted_cores_for_many_numbers(name: str) -> None:
    count = fitting(name, [((1, 1), (1, 1))])[0]
    ins = tuple(tnc.size(f"M{k}") for k in range(len(count[0])))
    outs = tuple(tnc.size(f"N{k}") for k in range(len(count[1])))
    rank = tnc.size("R")
    formula = make(name, rank).parameters(ins, outs)
    assert isinstance(formula, sympy.Expr)
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = [int(n) for n in rng.integers(2, 9, len(ins) + len(outs))]
        values = dict(zip((*ins, *outs), sizes, strict=True))
        counted = make(name, 2).parameters(sizes[: len(ins)], sizes[len(ins) :])
        assert formula.subs({**values, rank: 2}) == counted


# ---------------------------------------------------------------------------- variance


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_layer_keeps_the_variance_of_its_input(name: str, rank: int) -> None:
    ins, outs = fitting(name, [((4, 4, 4), (4, 4, 4)), ((8, 8), (8, 8))])[0]
    network = make(name, rank, clamp=True).network(ins, outs)
    batch = tnc.Index("batch")
    x = tnc.input("x", batch, *network.indices[: len(ins)])
    data = np.random.default_rng(0).standard_normal((64, *ins)).astype(np.float32)
    squares = []
    for seed in range(48):
        layer = tnc.compile(x @ network, framework="numpy", seed=seed)
        squares.append(float(np.mean(layer(data) ** 2)))
    assert 0.7 < np.sqrt(np.mean(squares)) < 1.3


# ---------------------------------------------------------------------------- rank rules


@pytest.mark.parametrize("name", [n for n in formats.FORMATS if n not in ("Dense", "Custom")])
def test_ranks_are_checked_against_what_bonds_carry(name: str) -> None:
    ins, outs = fitting(name, [((2, 3), (3, 2))])[0]
    with pytest.raises(FormatError, match="at most"):
        make(name, 10**4).network(ins, outs)
    most = full_ranks(make(name), Modes.of(ins, outs))
    assert make(name, 10**4, clamp=True).sizes(Modes.of(ins, outs)) == most
    assert make(name, list(most.values())).sizes(Modes.of(ins, outs)) == most
    for bad in (0, -1, 1.5, True, [2] * 99, {"nobody": 2}, None):
        with pytest.raises(FormatError):
            make(name, bad).network(ins, outs)


def test_monarch_says_that_it_wants_two_and_two() -> None:
    with pytest.raises(FormatError, match="two input and two output"):
        formats.Monarch(2).network((2, 2, 2), (4, 2))


@pytest.mark.parametrize("tree", [0, (0, 1), (0, (1, 2), 2), ((0,), (1, 2, 3)), "ab", (0, 1, 2, 9)])
def test_bad_trees_are_refused(tree: Any) -> None:
    with pytest.raises(FormatError, match="the tree"):
        formats.HT(2, tree=tree).network((2, 3), (3, 2))


@pytest.mark.parametrize("tree", [(0, 1, 2, 3), (3, (0, (2, 1))), ((0, 1), (2, 3))])
def test_any_tree_is_exact_at_full_rank(tree: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 2))
    found = formats.HT(10**3, clamp=True, tree=tree).decompose(weight, (2, 3), (3, 2))
    assert found.error < 1e-13


@pytest.mark.parametrize("blocks", [0, -1, 1.5, None])
def test_bad_numbers_of_blocks_are_refused(blocks: Any) -> None:
    with pytest.raises(FormatError, match="blocks"):
        formats.BlockTerm(1, blocks=blocks).network((2, 3), (3, 2))


@pytest.mark.parametrize(
    "ins, outs",
    [((), (4,)), ("ab", (4,)), ((4,), None), ((4, -1), (4,)), ((2.5,), (4,)), ((True,), (4,))],
)
def test_bad_shapes_are_refused(ins: Any, outs: Any) -> None:
    with pytest.raises(FormatError):
        formats.TT(1).network(ins, outs)


def test_two_modes_of_one_name_are_refused() -> None:
    i = tnc.Index("i", 3)
    with pytest.raises(FormatError, match="two modes"):
        formats.TT(1).network((i,), (i,))


def test_aliases() -> None:
    assert formats.MPS is formats.TT
    assert formats.MPO is formats.TTMatrix is formats.BlockTT


# ---------------------------------------------------------------------------- factorize


def test_factorize() -> None:
    assert formats.factorize(768, 3) == (8, 8, 12)
    assert formats.factorize(64, 3) == (4, 4, 4)
    assert math.prod(formats.factorize(97, 2)) > 97
    assert formats.factorize(97, 2, pad=False) == (1, 97)
    for bad in (0, 2.5, True):
        with pytest.raises(FormatError):
            formats.factorize(bad, 2)


# ---------------------------------------------------------------------------- the helpers can fail


def test_the_oracle_sees_a_wrong_core() -> None:
    network = make("TT", 2).network((3, 2), (2, 3))
    cores = random_cores(network)
    other = {**cores, "G1": cores["G1"] + 1}
    assert not np.allclose(oracle(network, cores), oracle(network, other))
