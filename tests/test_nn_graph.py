"""tnc.nn.GraphConv against the product with a dense adjacency, and against the same in torch."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tncompiler as tnc
from tests.test_formats import fitting, full
from tncompiler import formats
from tncompiler.ir.errors import TncError
from tncompiler.nn.checks import IMPLEMENTATIONS
from tncompiler.nn.graph import NORMALIZATIONS

NODES, IN, OUT = 7, 6, 4
SHAPES: list[Any] = [((2, 3), (2, 2))]
FORMAT = formats.TTMatrix(99, clamp=True)
MODES: dict[str, Any] = dict(in_shape=(2, 3), out_shape=(2, 2))
# node 6 has no edges in, and an edge comes twice
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 0, 3], [1, 2, 0, 4, 3, 0, 5, 4, 4, 3]])
torch.manual_seed(3)
WEIGHTS = torch.rand(EDGES.shape[1], dtype=torch.float64) + 0.1


def linear(inputs: int = IN, outputs: int = OUT, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, **{"dtype": torch.float64, **options})


def dense_of(**options: Any) -> Any:
    return tnc.nn.DenseGraphConv(linear(), **options)


def whole(dense: Any, format: Any = None, **options: Any) -> Any:
    format = full("TTMatrix", *SHAPES[0]) if format is None else format
    return tnc.nn.GraphConv.from_dense(dense, format, **MODES, **options)


def layer(**options: Any) -> Any:
    torch.manual_seed(0)
    return tnc.nn.GraphConv(IN, OUT, **{"format": FORMAT, **options})


def features() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(NODES, IN, dtype=torch.float64, requires_grad=True)


def by_adjacency(
    linear: nn.Linear, x: Tensor, weights: Tensor, normalization: Any, self_loops: bool
) -> Tensor:
    """The layer by its definition: a matrix of nodes times nodes."""
    matrix = torch.zeros(NODES, NODES, dtype=x.dtype)
    for (source, target), weight in zip(EDGES.T.tolist(), weights, strict=True):
        one = torch.zeros_like(matrix)
        one[target, source] = 1
        matrix = matrix + one * weight
    matrix = matrix + torch.eye(NODES, dtype=x.dtype) * self_loops
    degrees = matrix.sum(1)
    if normalization == "mean":
        matrix = matrix / degrees.clamp_min(1e-300)[:, None]
    if normalization == "symmetric":
        root = torch.where(degrees > 0, degrees.clamp_min(1e-300).rsqrt(), 0.0)
        matrix = root[:, None] * matrix * root
    return F.linear(matrix @ x, linear.weight, linear.bias)


def cases() -> Iterator[Any]:
    for normalization in NORMALIZATIONS:
        for self_loops in (True, False):
            yield pytest.param(normalization, self_loops)


@pytest.mark.parametrize("normalization, self_loops", [*cases()])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_the_product_with_the_adjacency(
    implementation: str, normalization: Any, self_loops: bool
) -> None:
    dense = dense_of(normalization=normalization, self_loops=self_loops)
    mine, x = whole(dense, implementation=implementation), features()
    for weights in (None, WEIGHTS.clone().requires_grad_()):
        given = torch.ones_like(WEIGHTS) if weights is None else weights
        wanted = by_adjacency(dense.linear, x, given, normalization, self_loops)
        cotangent = torch.randn_like(wanted)
        leaves = [x] if weights is None else [x, weights]
        gradients = torch.autograd.grad(wanted, leaves, cotangent, retain_graph=True)
        for model in (mine, dense):
            got = model(x, EDGES, weights)
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
            found = torch.autograd.grad(got, leaves, cotangent, retain_graph=True)
            for a, b in zip(found, gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("wide", [False, True])
def test_every_format(name: str, wide: bool) -> None:
    """Narrowing layers propagate what they made, widening ones what they got."""
    shapes: Any = ((2, 3), (3, 4)) if wide else SHAPES[0]
    (ins, outs) = fitting(name, [shapes])[0]
    dense = tnc.nn.DenseGraphConv(linear(outputs=12 if wide else OUT))
    mine = tnc.nn.GraphConv.from_dense(dense, full(name, ins, outs), in_shape=ins, out_shape=outs)
    x = features()
    got, wanted = mine(x, EDGES, WEIGHTS), dense(x, EDGES, WEIGHTS)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn_like(got)
    (by_weight,) = torch.autograd.grad(wanted, dense.linear.weight, cotangent)
    cores = [core for key, core in mine.named_parameters() if key != "cores.bias"]
    by_cores = torch.autograd.grad(got, cores, cotangent)
    through = torch.autograd.grad(mine.reconstruct(), cores, by_weight)
    for a, b in zip(by_cores, through, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    back = mine.to_dense()
    torch.testing.assert_close(back.linear.weight, dense.linear.weight, rtol=1e-11, atol=1e-11)


def test_the_comparison_sees_another_graph() -> None:
    mine, dense, x = whole(dense_of()), dense_of(), features()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mine(x, EDGES), dense(x, EDGES.flip(0)))


def test_graphs_of_any_size() -> None:
    mine, dense = whole(dense_of()), dense_of()
    for nodes, edges in ((1, 0), (0, 0), (50, 400)):
        x = torch.randn(nodes, IN, dtype=torch.float64)
        index = torch.randint(max(nodes, 1), (2, edges))
        for model in (mine, mine.eval()):
            torch.testing.assert_close(model(x, index), dense(x, index))
        assert mine(x, index.int()).shape == (nodes, OUT)


def test_state_copies_and_meta() -> None:
    mine, x = layer(), features().detach().float()
    assert list(mine.state_dict()) == ["cores.G1", "cores.G2", "cores.G3", "cores.bias"]
    other = layer(device="meta").to_empty(device="cpu")
    other.load_state_dict(mine.state_dict(), strict=True)
    for copied in (other, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(copied(x, EDGES), mine(x, EDGES))
    other = layer()
    other.reset_parameters()
    other.tie(mine)
    torch.testing.assert_close(other.weight, mine.weight)
    assert other.cores.G1 is mine.cores.G1
    with tnc.scope("block"):
        assert layer()(x, EDGES).shape == (NODES, OUT)


def test_variance_is_kept_for_nodes_on_their_own() -> None:
    torch.manual_seed(0)
    mine = tnc.nn.GraphConv(64, 48, format=formats.TTMatrix(16, clamp=True))
    out = mine(torch.randn(500, 64), torch.zeros(2, 0, dtype=torch.int64))
    assert 0.6 < float(out.detach().std()) < 1.6


def test_repr_is_one_line() -> None:
    assert repr(layer(format=formats.LowRank(2), normalization="mean")) == (
        "GraphConv(normalization='mean', self_loops=True, 6, 4, bias=True, format=LowRank(rank=2), "
        "6 → 4, 20 parameters in cores, compression 1.2x)"
    )


X = torch.randn(NODES, IN)
BAD: dict[str, Any] = {
    "features": lambda: tnc.nn.GraphConv(0, 4, format=FORMAT),
    "normalization": lambda: layer(normalization="both"),
    "dense normalization": lambda: tnc.nn.DenseGraphConv(linear(), "both"),
    "format": lambda: layer(format=None),
    "from a linear": lambda: whole(linear()),
    "list": lambda: layer()([1.0], EDGES),
    "other features": lambda: layer()(X[:, :3], EDGES),
    "edges in rows": lambda: layer()(X, EDGES.T),
    "edges of floats": lambda: layer()(X, EDGES.float()),
    "weights": lambda: layer()(X, EDGES, torch.ones(3)),
    "weights of another dtype": lambda: layer()(X, EDGES, WEIGHTS),
    "no such node": lambda: layer()(X, EDGES + 1),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()
