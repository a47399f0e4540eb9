"""Equations, networkx graphs and quimb networks as expressions and back.

In: a table of expressions, generated graphs, quimb's own networks. Compiled values agree with the
original's, with opt_einsum's, or with quimb's own contraction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import opt_einsum as oe
import pytest

import tncompiler as tnc
from tncompiler.ir import errors as er
from tncompiler.ir.errors import TncError

I, J, K, L = tnc.indices("i j k l", i=2, j=3, k=4, l=2)
B = tnc.Index("b")
X, Y, Z = tnc.input("X", I, J), tnc.input("Y", J, K), tnc.input("Z", K, I)
W, S = tnc.param("W", I, J), tnc.param("S", I, L)


def chain(count: int) -> tnc.Expr:
    sites = [tnc.Index(f"s{k}", 2) for k in range(count + 1)]
    cores = [tnc.param(f"G{k}", *sites[k : k + 2]) for k in range(count)]
    return tnc.contract(*cores, out=(sites[0], sites[-1]))


NETWORKS: dict[str, Callable[[], tnc.Expr]] = {
    "product": lambda: X @ Y,
    "cycle": lambda: tnc.contract(X, Y, Z, out=()),
    "shared parameter": lambda: tnc.contract(W(I, J), W(L, J), out=(L, I)),
    "used three times": lambda: tnc.contract(S(I, L), S(L, I), S(I, L), out=(I,)),
    "hyperedge": lambda: tnc.contract(X, Y, tnc.input("v", J), out=(K, J, I)),
    "trace": lambda: tnc.contract(S, tnc.delta(I, L), out=()),
    "diagonal": lambda: tnc.contract(S, tnc.delta(I, L), out=(I,)),
    "delta in the middle": lambda: tnc.contract(
        X, tnc.delta(I, L), tnc.input("Q", L, K), out=(J, K)
    ),
    "ones that sum": lambda: tnc.contract(X, tnc.ones(J), out=(I,)),
    "nested": lambda: ((X @ Y) * tnc.input("v", K)).sum(K),
    "captured names": lambda: (X @ Y) @ tnc.input("Q", K, J),
    "scalars": lambda: tnc.contract(tnc.input("a"), tnc.input("b"), X, out=(J,)),
    "one scalar": lambda: tnc.input("a"),
    "one leaf": lambda: X,
    "one leaf, transposed": lambda: X.transpose(J, I),
    "one leaf, summed": lambda: X.sum(I),
    "disconnected": lambda: tnc.contract(X, tnc.input("Q", K, L), out=(K, J, L, I)),
    "free size": lambda: tnc.contract(tnc.input("x", B, I), W, out=(B, J)),
    "constant": lambda: tnc.contract(X, tnc.constant("c", J, value=np.arange(3.0)), out=(I,)),
    "init": lambda: X @ tnc.param("V", J, K, init=np.ones((3, 4))),
    "named init": lambda: X @ tnc.param("V", J, K, init="zeros"),
    "complex": lambda: X @ tnc.input("c", J, K, dtype="complex64"),
    "dotted names": lambda: X @ tnc.param("fc1.G.core", J, K),
    "long index names": lambda: tnc.contract(
        tnc.input("x", tnc.Index("in features", 2), tnc.Index("α", 3)), tnc.input("u", I), out=(I,)
    ),
    "size one and zero": lambda: tnc.contract(
        tnc.input("x", tnc.Index("n", 0), I), tnc.input("u", tnc.Index("m", 1), I)
    ),
    "many": lambda: chain(70),
    "sizes as expressions": lambda: tnc.contract(
        tnc.input("x", tnc.Index("m", 2 * tnc.size("D")), I), W, out=("m", J)
    ),
}
ONLY_GRAPHS: dict[str, Callable[[], tnc.Expr]] = {
    "repeated output": lambda: tnc.contract(X, tnc.delta(I, L), out=(I, L, J)),
    "ones in the output": lambda: tnc.contract(X, tnc.ones(K), out=(K, I, J)),
}
BOUND = {"b": 5, "D": 3}


def made(name: str) -> tnc.Expr:
    return {**NETWORKS, **ONLY_GRAPHS}[name]()


def arrays_for(expr: tnc.Expr) -> dict[str, np.ndarray]:
    """Random values for inputs and parameters, by name."""
    rng, found = np.random.default_rng(0), {}
    for leaf in expr.leaves:
        shape = [
            n if isinstance(n, int) else int(n.subs({s: BOUND[s.name] for s in n.free_symbols}))
            for n in leaf.shape
        ]
        values = rng.standard_normal(shape) if leaf.kind != "constant" else leaf.value
        found[leaf.name] = np.asarray(values).astype("c8" if leaf.dtype == "complex64" else "f4")
    return found


def value(expr: tnc.Expr, arrays: dict[str, np.ndarray]) -> np.ndarray:
    g = tnc.compile(
        expr, framework="numpy", sizes={k: n for k, n in BOUND.items() if uses(expr, k)}
    )
    parameters = {name: arrays[name] for name in g.parameters}
    return np.asarray(g(**{name: arrays[name] for name in g.inputs}, parameters=parameters))


def uses(expr: tnc.Expr, size: str) -> bool:
    shapes = [n for leaf in expr.leaves for n in leaf.shape if not isinstance(n, int)]
    return any(str(symbol) == size for n in shapes for symbol in n.free_symbols)


def close(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- equations


@pytest.mark.parametrize("name", NETWORKS)
def test_to_einsum_and_back(name: str) -> None:
    expr = made(name)
    arrays = arrays_for(expr)
    equation = expr.to_einsum()
    operands = [arrays[leaf.name] for leaf in equation.operands]
    right = value(expr, arrays)
    assert close(tnc.einsum(equation, *operands), right)
    assert close(oe.contract(str(equation), *operands), right)
    again = tnc.from_einsum(equation, *equation.operands)  # expressions, by position
    assert close(value(again, arrays), right)
    plain = tnc.from_einsum(equation, *operands)
    assert close(tnc.compile(plain, framework="numpy")(*operands), right)


@pytest.mark.parametrize("name", ONLY_GRAPHS)
def test_what_no_equation_says(name: str) -> None:
    with pytest.raises(er.EquationError, match="output") as caught:
        made(name).to_einsum()
    assert caught.value.where and caught.value.fix


@pytest.mark.parametrize(
    "expr",
    [
        tnc.relu(X @ Y),
        X + W,
        tnc.contract(tnc.relu(X), Y),
        tnc.stack([X, W], tnc.Index("n", 2)),
        X / W,
    ],
)
def test_what_is_no_network(expr: tnc.Expr) -> None:
    for method in (expr.to_einsum, expr.to_networkx):
        with pytest.raises(er.EquationError, match="more than one contraction") as caught:
            method()
        assert caught.value.where and "to_json" in caught.value.fix


def test_letters_are_kept_and_never_clash() -> None:
    assert (X @ Y).to_einsum() == "ij,jk->ik"
    a, b = tnc.indices("a xb", a=2, xb=3)
    assert tnc.contract(tnc.input("x", b, a), out=(a, b)).to_einsum() in ("ba->ab", "ca->ac")
    letters = set(chain(70).to_einsum()) - set(",->")
    assert len(letters) == 71


FROM: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = [
    (("ij,jk->ik", (2, 3), (3, 4)), (2, 4)),
    (("ij,jk", (2, 3), (3, 4)), (2, 4)),
    (("b...i,ij->...bj", (7, 5, 2), (2, 3)), (5, 7, 3)),
    (("...i,...i->...", (5, 1, 2), (4, 2)), (5, 4)),
    (("ii->i", (3, 3)), (3,)),
    (("ij,ij->ij", (1, 3), (2, 1)), (2, 3)),
    ((np.ones((2, 3)), [0, 1], (3, 4), [1, 2], [2, 0]), (4, 2)),
    (((2, 3), ["left", "bond"], (3, 4), ["bond", "right"]), (2, 4)),
    (("αβ,βγ->γα", (2, 3), (3, 4)), (4, 2)),
    (("i,", (2,), ()), (2,)),
    (("i->", (0,)), ()),
]


@pytest.mark.parametrize("number", range(len(FROM)))
def test_from_einsum(number: int) -> None:
    arguments, shape = FROM[number]
    expr = tnc.from_einsum(*arguments)
    assert tuple(expr.shape) == shape
    rng = np.random.default_rng(0)
    given = [
        rng.random(np.shape(a) if isinstance(a, np.ndarray) else a)
        if isinstance(a, tuple | np.ndarray)
        else a
        for a in arguments
    ]
    arrays = [np.asarray(a) for a in given if not isinstance(a, str | list)]
    assert [leaf.name for leaf in expr.leaves] == [f"x{k}" for k in range(len(arrays))]
    f = tnc.compile(expr, framework="numpy", dtype="float64")
    assert close(f(*arrays), oe.contract(*given))


def test_from_einsum_without_shapes_and_with_names() -> None:
    expr = tnc.from_einsum("bi,ij->bj", names=["x", "A"])
    assert [str(s) for s in expr.shape] == ["b", "j"] and [n.name for n in expr.leaves] == [
        "x",
        "A",
    ]
    f = tnc.compile(expr, framework="numpy")
    for b in (1, 5):
        x, a = np.ones((b, 2), "f4"), np.ones((2, 3), "f4")
        assert close(f(x, a), x @ a)
    arrays = arrays_for(X @ Y)
    assert close(value(tnc.from_einsum("ab,bc->ac", X, Y), arrays), value(X @ Y, arrays))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (er.ArgumentCountError, lambda: tnc.from_einsum("ij,jk", (2, 3))),
        (er.ArgumentCountError, lambda: tnc.from_einsum("ij,jk", (2, 3), (3, 4), names=["x"])),
        (er.SizeClash, lambda: tnc.from_einsum("ij,jk", (2, 3), (4, 4))),
        (er.ShapeError, lambda: tnc.from_einsum("ij,jk", (2, 3, 1), (3, 4))),
        (er.UnknownOutputIndex, lambda: tnc.from_einsum("ij->k", (2, 3))),
        (er.RepeatedOutputIndex, lambda: tnc.from_einsum("ij->ii", (2, 3))),
        (er.EquationError, lambda: tnc.from_einsum("...i,ij->j")),
        (er.EquationError, lambda: tnc.from_einsum("i..j", (2, 3))),
        (er.ArgumentError, lambda: tnc.from_einsum("ij", None)),
        (er.BadSize, lambda: tnc.from_einsum("ij", (2, -3))),
        (er.BadName, lambda: tnc.from_einsum("ij", (2, 3), names=["my x"])),
        (TncError, lambda: tnc.from_einsum(5)),
        (er.UnsupportedDType, lambda: tnc.from_einsum("i", np.array(["a"]))),
    ],
)
def test_errors_of_from_einsum(kind: type[TncError], call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.what and caught.value.fix


# ---------------------------------------------------------------------------- networkx


@pytest.mark.parametrize("name", [*NETWORKS, *ONLY_GRAPHS])
def test_to_networkx_and_back(name: str) -> None:
    expr = made(name)
    arrays = arrays_for(expr)
    graph = expr.to_networkx()
    again = tnc.from_networkx(graph)
    assert close(value(again, arrays), value(expr, arrays))
    kinds = {leaf.name: (leaf.kind, leaf.dtype) for leaf in expr.leaves}
    assert {leaf.name: (leaf.kind, leaf.dtype) for leaf in again.leaves} == kinds
    assert tuple(again.shape) == tuple(expr.shape)
    twice = tnc.from_networkx(again.to_networkx())
    assert close(value(twice, arrays), value(expr, arrays))
    if expr.indices and name != "repeated output":
        assert [i.name for i in again.indices] == [i.name for i in expr.indices]


def plain(graph: nx.Graph, *, sizes: bool, seed: int = 0) -> nx.Graph:
    """A plain graph with sizes on its edges, and an open index on some nodes."""
    rng = np.random.default_rng(seed)
    for *_, data in graph.edges(data=True):
        data["size"] = int(rng.integers(1, 4)) if sizes else "D"
    for number, node in enumerate(list(graph)[:2]):
        graph.nodes[node]["open"] = {f"p{number}": 2}
    return graph


def einsum_of(graph: nx.Graph) -> list[list[Any]]:
    """Labels of each node: its edges in order, then its open indices."""
    terms: dict[Any, list[Any]] = {node: [] for node in graph}
    for number, (a, b) in enumerate(graph.edges()):
        terms[a].append(f"e{number}")
        terms[b].append(f"e{number}")
    for node, data in graph.nodes(data=True):
        terms[node] += list(data.get("open", {}))
    return list(terms.values())


GRAPHS: dict[str, Callable[[], nx.Graph]] = {
    "path": lambda: nx.path_graph(5),
    "tree": lambda: nx.random_labeled_tree(12, seed=1),
    "binary tree": lambda: nx.balanced_tree(2, 3),
    "lattice": lambda: nx.grid_2d_graph(3, 3),
    "periodic lattice": lambda: nx.grid_2d_graph(3, 3, periodic=True),
    "cube": lambda: nx.hypercube_graph(3),
    "regular": lambda: nx.random_regular_graph(3, 10, seed=2),
    "multigraph": lambda: nx.MultiGraph([(0, 1), (0, 1), (1, 2), (2, 2)]),
    "complete": lambda: nx.complete_graph(5),
    "star": lambda: nx.star_graph(6),
    "edgeless": lambda: nx.empty_graph(3),
    "two parts": lambda: nx.disjoint_union(nx.path_graph(3), nx.cycle_graph(3)),
    "names": lambda: nx.Graph([("left", "a b"), ("a b", "ü"), ("ü", "left")]),
}


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_plain_graphs(name: str, sizes: bool) -> None:
    graph = plain(GRAPHS[name](), sizes=sizes)
    expr = tnc.from_networkx(graph)
    assert len(expr.leaves) == len(graph)
    rng = np.random.default_rng(1)
    arrays = [
        rng.standard_normal([n if isinstance(n, int) else 3 for n in leaf.shape]).astype("f4")
        for leaf in expr.leaves
    ]
    terms = einsum_of(graph)
    out = [label for term in terms for label in term if label[0] == "p"]
    mixed = [part for pair in zip(arrays, terms, strict=True) for part in pair]
    f = tnc.compile(expr, framework="numpy", sizes={} if sizes or not graph.edges else {"D": 3})
    right = oe.contract(*mixed, out)
    size = oe.contract(*(np.abs(p) if isinstance(p, np.ndarray) else p for p in mixed), out)
    assert (np.abs(f(*arrays) - right) <= 1e-5 * size).all()


def test_attributes_of_plain_graphs() -> None:
    graph = nx.Graph()
    graph.add_node("x", open={"b": None})
    graph.add_node("G", name="fc.G", kind="param", dtype="float32", init="zeros", open={"o": 4})
    graph.add_node("c", kind="constant", value=np.ones(4, "f4"), open={})
    graph.add_edge("x", "G", name="r", size=4)
    graph.graph["output"] = ["o", "b"]
    graph.add_edge("c", "G", size=4)
    expr = tnc.from_networkx(graph)
    assert [i.name for i in expr.indices] == ["o", "b"]
    assert {n.name: n.kind for n in expr.leaves} == {"x": "input", "fc.G": "param", "c": "constant"}
    f = tnc.compile(expr, seed=0)
    assert set(dict(f.named_parameters())) == {"fc.G"}


def bipartite(**changes: Any) -> nx.MultiGraph:
    """X(i, j) @ Y(j, k), with attributes of its first tensor, index or edge changed."""
    graph = nx.MultiGraph((X @ Y).to_networkx())
    graph.graph["output"] = list(graph.graph["output"])
    for what, update in changes.items():
        if what == "output":
            graph.graph["output"] = update
            continue
        target = graph.edges if what == "edge" else graph.nodes
        key = next(k for k in target if what == "edge" or k[0] == what)
        target[key].update(update)
    return graph


def simple(edges: Any = ((0, 1),), **attributes: Any) -> nx.Graph:
    graph = nx.Graph()
    graph.add_edges_from(edges)
    nx.set_node_attributes(graph, {0: attributes})
    return graph


def edged(**attributes: Any) -> nx.Graph:
    graph = nx.Graph()
    graph.add_edge(0, 1, **attributes)
    return graph


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "no graph": (lambda: {"a": 1}, "networkx graph"),
    "None": (lambda: None, "networkx graph"),
    "directed": (lambda: nx.DiGraph([(0, 1)]), "undirected"),
    "empty": (nx.Graph, "no nodes"),
    "type": (lambda: bipartite(tensor={"type": "spam"}), "type"),
    "no type": (lambda: bipartite(index={"type": None}), "type"),
    "kind": (lambda: bipartite(tensor={"kind": "spam"}), "kind"),
    "kind that is a list": (lambda: bipartite(tensor={"kind": []}), "kind"),
    "constant without a value": (lambda: bipartite(tensor={"kind": "constant"}), "value"),
    "input with a value": (lambda: bipartite(tensor={"value": np.ones((2, 3))}), "value"),
    "value of a wrong shape": (
        lambda: bipartite(tensor={"kind": "constant", "value": np.ones((7, 7))}),
        "shape",
    ),
    "value that is text": (
        lambda: bipartite(tensor={"kind": "constant", "value": "spam"}),
        "",
    ),
    "input with an init": (lambda: bipartite(tensor={"init": "normal"}), "init"),
    "unknown init": (lambda: bipartite(tensor={"kind": "param", "init": "spam"}), "init"),
    "name that is code": (lambda: bipartite(tensor={"name": "import os\n"}), "name"),
    "name that is a number": (lambda: bipartite(tensor={"name": 7}), "name"),
    "dtype": (lambda: bipartite(tensor={"dtype": "spam"}), "dtype"),
    "dtype that is a list": (lambda: bipartite(tensor={"dtype": [1]}), "dtype"),
    "size": (lambda: bipartite(index={"size": -1}), "size"),
    "size that is code": (lambda: bipartite(index={"size": "__import__('os')"}), "size"),
    "size that is endless": (lambda: bipartite(index={"size": "9**9**9**9"}), "size"),
    "size that is a fraction": (lambda: bipartite(index={"size": 2.5}), "size"),
    "size that is a list": (lambda: bipartite(index={"size": [3]}), "size"),
    "index name": (lambda: bipartite(index={"name": "a\nb"}), "name"),
    "index name twice": (lambda: bipartite(index={"name": "k"}), "called"),
    "axis": (lambda: bipartite(edge={"axis": 5}), "ax"),
    "axis that is text": (lambda: bipartite(edge={"axis": "0"}), "axis"),
    "axis twice": (lambda: bipartite(edge={"axis": 1}), "axis"),
    "output": (lambda: bipartite(output=["spam"]), "output"),
    "output that is a tensor": (lambda: bipartite(output=[("tensor", 0)]), "output"),
    "output that is a number": (lambda: bipartite(output=3), "output"),
    "output of lists": (lambda: bipartite(output=[[1]]), "output"),
    "edge size": (lambda: edged(size="a b"), "size"),
    "edge name twice": (lambda: simple([(0, 1, {"name": "a"}), (1, 2, {"name": "a"})]), "called"),
    "open": (lambda: simple(open=5), "open"),
    "open that is a list": (lambda: simple(open=["p"]), "open"),
    "open size": (lambda: simple(open={"p": -2}), "size"),
    "open name": (lambda: simple(open={5: 2}), "name"),
    "open name of an edge": (lambda: simple(open={"e0": 2}), "called"),
    "plain kind": (lambda: simple(kind="spam"), "kind"),
    "plain name": (lambda: simple(name=""), "name"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graphs(case: str) -> None:
    graph, word = HOSTILE[case]
    with pytest.raises(er.GraphError) as caught:
        tnc.from_networkx(graph())
    assert word in str(caught.value) and caught.value.fix, caught.value


def test_big_graphs_are_no_problem() -> None:
    graph = nx.path_graph(3000)
    nx.set_edge_attributes(graph, 2, "size")
    expr = tnc.from_networkx(graph)
    assert len(expr.leaves) == 3000
    assert len(expr.to_networkx()) == 5999


# ---------------------------------------------------------------------------- quimb


@pytest.fixture(scope="module")
def qtn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quimb.tensor

    return quimb.tensor


def hyper(qtn: Any) -> Any:
    shapes = {"a": (2, 3), "b": (2, 3), "c": (2,)}
    terms = [("h", "i"), ("h", "j"), ("h",)]
    tensors = [qtn.rand_tensor(s, t, seed=2) for s, t in zip(shapes.values(), terms, strict=True)]
    return qtn.TensorNetwork(tensors)


def scaled(network: Any) -> Any:
    network.exponent = 3.5
    return network


QUIMB: dict[str, Callable[[Any], Any]] = {
    "MPS": lambda q: q.MPS_rand_state(6, 4, seed=1),
    "complex MPS": lambda q: q.MPS_rand_state(5, 3, dtype=complex, seed=1),
    "cyclic MPS": lambda q: q.MPS_rand_state(5, 3, cyclic=True, seed=1),
    "norm": lambda q: q.MPS_rand_state(5, 3, dtype=complex, seed=1).make_norm(),
    "MPO": lambda q: q.MPO_rand(4, 3, seed=2),
    "Heisenberg": lambda q: q.MPO_ham_heis(4),
    "expectation": lambda q: q.MPS_computational_state("0101").H & q.MPS_rand_state(4, 2, seed=3),
    "PEPS": lambda q: q.PEPS.rand(2, 3, 2, seed=3),
    "2D": lambda q: q.TN2D_rand(3, 3, 2, seed=1),
    "3D": lambda q: q.TN3D_rand(2, 2, 2, 2, seed=1),
    "regular": lambda q: q.TN_rand_reg(10, 3, 2, seed=1),
    "with outer indices": lambda q: q.TN_rand_reg(6, 3, 2, phys_dim=2, seed=1),
    "tree": lambda q: q.TN_rand_tree(9, 3, seed=2),
    "Ising": lambda q: q.HTN2D_classical_ising_partition_function(3, 3, 0.4),
    "hyper indices": hyper,
    "exponent": lambda q: scaled(q.MPS_rand_state(4, 3, seed=1)),
    "trace": lambda q: q.TensorNetwork([q.rand_tensor((3, 3), ("a", "a"), seed=1)]),
    "scalar": lambda q: q.TensorNetwork([q.Tensor(2.0), q.rand_tensor((2,), ("a",), seed=1)]),
}


@pytest.mark.parametrize("kind", ["constant", "param", "input"])
@pytest.mark.parametrize("name", QUIMB)
def test_quimb(name: str, kind: str, qtn: Any) -> None:
    network = QUIMB[name](qtn)
    outer = network.outer_inds()
    contracted = network.contract(output_inds=outer)
    right = np.asarray(getattr(contracted, "data", contracted))
    right = right * 10.0**network.exponent if name == "exponent" and np.ndim(contracted) else right
    if name == "exponent":
        right = network.copy()
        right.exponent = 0.0
        right = right.contract(output_inds=outer).data * 10.0**3.5
    expr = tnc.from_quimb(network, kind=kind)
    assert [i.name for i in expr.indices] == list(outer)
    dtype = "complex128" if any(np.iscomplexobj(t.data) for t in network.tensors) else "float64"
    f = tnc.compile(expr, framework="numpy", dtype=dtype)
    got = f(*(t.data for t in network.tensors)) if kind == "input" else f()
    assert np.shape(got) == np.shape(right)
    assert np.allclose(got, right, rtol=1e-10)


def test_quimb_outputs_names_and_torch_data(qtn: Any) -> None:
    import torch

    network = hyper(qtn)
    right = network.contract(output_inds=("j", "h", "i")).data
    expr = tnc.from_quimb(network, kind="constant", output=("j", "h", "i"))
    assert np.allclose(tnc.compile(expr, framework="numpy", dtype="float64")(), right)
    mps = qtn.MPS_rand_state(3, 2, seed=1)
    assert [leaf.name for leaf in tnc.from_quimb(mps).leaves] == ["I0", "I1", "I2"]
    mps.apply_to_arrays(lambda x: torch.tensor(x, requires_grad=True))
    module = tnc.compile(tnc.from_quimb(mps), dtype="float64")
    assert module().shape == (2, 2, 2) and len(list(module.parameters())) == 3
    one = tnc.from_quimb(qtn.rand_tensor((2, 3), ("a", "b"), seed=1))
    assert tuple(one.shape) == (2, 3)
    ones = [qtn.Tensor(np.full(2, 3.0), ("a",)), qtn.Tensor(np.ones(2), ("a",), tags=["t0"])]
    both = tnc.from_quimb(qtn.TensorNetwork(ones), kind="constant")
    assert len(both.leaves) == 2 and tnc.compile(both, framework="numpy")() == 6
    tagged = [qtn.Tensor(np.ones(2), ("a",), tags=[tag]) for tag in ("lambda", "a b", "__x__")]
    assert [n.name for n in tnc.from_quimb(qtn.TensorNetwork(tagged), output=()).leaves] == [
        "t0", "t1", "t2",
    ]  # fmt: skip


def test_quimb_lattices_get_readable_names(qtn: Any) -> None:
    """Random bond names become short ones, and tags such as I0,1 identifiers."""
    peps = qtn.PEPS.rand(2, 2, bond_dim=2, seed=0)
    expr = tnc.from_quimb(peps)
    assert [leaf.name for leaf in expr.leaves] == ["I0_0", "I0_1", "I1_0", "I1_1"]
    inner = {index.name for leaf in expr.leaves for index in leaf.indices} - set(peps.outer_inds())
    assert inner == {"b0", "b1", "b2", "b3"}
    again = tnc.from_quimb(qtn.PEPS.rand(2, 2, bond_dim=2, seed=0))
    assert again.to_text() == expr.to_text()


def names_of(tensors: Any) -> list[str]:
    return [leaf.name for leaf in tnc.from_quimb(tensors, output=()).leaves]


def test_quimb_layers_of_one_lattice_are_told_apart(qtn: Any) -> None:
    norm = qtn.PEPS.rand(2, 2, bond_dim=2, seed=0).make_norm()
    assert names_of(norm)[::4] == ["I0_0_KET", "I0_0_BRA"]
    mps = qtn.MPS_rand_state(3, 2, seed=1)
    assert names_of(mps.H & mps) == ["I0", "I1", "I2", "I0_b", "I1_b", "I2_b"]


def test_quimb_names_are_never_shared(qtn: Any) -> None:
    """Leaves of one name would be one parameter."""
    tags = [["A"], ["A"], ["A_b"], ["A", "b"], ["A", "c"], ["b"], ["b"], ["b"], ["b"], ["b"]]
    tensors = [qtn.Tensor(np.full(2, k), ("a",), tags=own) for k, own in enumerate(tags)]
    found = names_of(qtn.TensorNetwork(tensors))
    assert len(set(found)) == len(tags) and "A_b" in found


def test_errors_of_from_quimb(qtn: Any) -> None:
    mps = qtn.MPS_rand_state(3, 2, seed=1)
    for call in (
        lambda: tnc.from_quimb(5),
        lambda: tnc.from_quimb(np.ones(3)),
        lambda: tnc.from_quimb(mps, kind="spam"),
        lambda: tnc.from_quimb(mps, output=("spam",)),
        lambda: tnc.from_quimb(mps, output=("k0", "k0")),
        lambda: tnc.from_quimb(qtn.TensorNetwork([])),
    ):
        with pytest.raises(TncError) as caught:
            call()
        assert caught.value.what and caught.value.fix
