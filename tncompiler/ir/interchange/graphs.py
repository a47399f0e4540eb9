"""Networks as networkx graphs and back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx

from tncompiler.ir import algebra
from tncompiler.ir.errors import GraphError, TncError
from tncompiler.ir.expressions import INITIALIZERS, Expr
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.equations import wired
from tncompiler.ir.interchange.networks import only_network
from tncompiler.ir.names import is_plain_identifier
from tncompiler.ir.network import TensorNetwork
from tncompiler.ir.sizes import Size, as_size, parse_size

KINDS = ("input", "param", "constant")
Tensors = list[tuple[dict[str, Any], list[Index]]]  # what each node says, and its axes


def to_networkx(expr: Expr) -> nx.MultiGraph:
    """The network as a graph with a node for each tensor and each index, an edge for each axis.

    Tensor nodes ("tensor", k) have ``type`` "tensor", ``name``, ``kind``, ``dtype`` and, where the
    leaf has them, ``init`` and ``value``; index nodes ("index", k) have ``type`` "index", ``name``
    and ``size``; edges have ``axis``. ``graph.graph["output"]`` lists the index nodes of the
    result. `from_networkx` reads it back. Raises EquationError where the expression is more than
    one contraction of leaves.
    """
    network = only_network(expr)
    leaves = {leaf.name: leaf for leaf in expr.leaves}
    graph = nx.MultiGraph(network.graph, name=network.name)
    graph.graph["output"] = [("index", label) for label in network.output]
    for node, data in graph.nodes(data=True):
        data["type"] = node[0]
        if node[0] == "tensor":
            leaf = leaves[data["name"]]
            data.update(kind=leaf.kind, dtype=leaf.dtype)
            data.update({k: v for k in ("init", "value") if (v := getattr(leaf, k)) is not None})
    return graph


def from_networkx(graph: nx.Graph) -> Expr:
    """The contraction that a graph describes.

    Either what `to_networkx` gives, or a plain graph in which every node is a tensor and every edge
    an index that two tensors share. There an edge may have ``size`` and ``name``; a node may have
    ``name``, ``kind`` ("input", "param" or "constant"), ``dtype``, ``init``, ``value``, and
    ``open``: a dict from the names of its open indices to their sizes (None for a symbol).
    A tensor's axes are its edges in the order of the graph, then its open indices;
    ``graph.graph["output"]`` may order the names of the open indices.

    Raises: GraphError naming the node or edge that does not fit.
    """
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise GraphError(
            f"from_networkx takes an undirected networkx graph, not a {type(graph).__name__}",
            fix="build an nx.Graph or nx.MultiGraph",
        )
    if not len(graph):
        raise GraphError("the graph has no nodes", fix="add a node for each tensor")
    typed = any("type" in data for _, data in graph.nodes(data=True))
    try:
        return _contracted(*(_bipartite(graph) if typed else _plain(graph)))
    except GraphError:
        raise
    except TncError as error:
        raise GraphError(f"the graph is no network: {error.what}", fix=error.fix) from error


def from_network(network: TensorNetwork) -> Expr:
    """The contraction that a network is; constants, whose values it does not hold, are inputs."""
    graph = nx.MultiGraph(network.graph)
    graph.graph["output"] = [("index", label) for label in network.output]
    for node, data in graph.nodes(data=True):
        data["type"] = node[0]
        if data.get("kind") in ("constant", "intermediate"):
            data["kind"] = "input"
    return from_networkx(graph)


def _contracted(tensors: Tensors, output: Sequence[Index]) -> Expr:
    terms = [graph_leaf(data, axes) for data, axes in tensors]
    known = {index for _, axes in tensors for index in axes}
    extra: list[Expr] = []
    out: list[Index] = []
    for index in output:
        if index in out:  # an output may repeat an index: a diagonal
            copy = Index(f"{index.name}'{len(out)}", index.size)
            extra.append(algebra.delta(index, copy))
            index = copy
        elif index not in known:
            extra.append(algebra.ones(index))
        out.append(index)
    return algebra.contract(*terms, *extra, out=out)


def graph_leaf(data: Mapping[str, Any], axes: Sequence[Index]) -> Expr:
    """The leaf that a node describes, its axes called by `axes`; a repeated index is joined."""
    name, kind = data["name"], data.get("kind", "input")
    init, value = data.get("init"), data.get("value")
    if kind not in KINDS:
        raise GraphError(f"node {name!r} has kind {kind!r}", fix=f"choose {', '.join(KINDS)}")
    if (value is not None) != (kind == "constant") or (init is not None and kind != "param"):
        raise GraphError(
            f"node {name!r} of kind {kind!r} does not fit its init or value",
            fix="constants, and only they, have a value; only a param has an init",
        )
    if isinstance(init, str) and init not in INITIALIZERS:
        raise GraphError(
            f"node {name!r} has the init {init!r}", fix=f"choose {', '.join(INITIALIZERS)}"
        )
    distinct = [
        index if index not in axes[:axis] else Index(f"{index.name}'{axis}", index.size)
        for axis, index in enumerate(axes)
    ]
    leaf = algebra.leaf(name, distinct, kind=kind, dtype=data.get("dtype"), init=init, value=value)
    return wired(leaf, list(axes), name)


def _size(value: Any, what: str) -> Size:
    """A size in a graph: an integer, a size expression, or its text."""
    try:
        return parse_size(value) if isinstance(value, str) else as_size(value, what)
    except TncError as error:
        raise GraphError(f"{what} has the size {value!r:.40}", fix=error.fix) from None


def _bipartite(
    graph: nx.Graph,
) -> tuple[Tensors, list[Index]]:
    """Tensors and output of a graph with a node for each tensor and each index."""
    indices: dict[Hashable, Index] = {}
    for node, data in graph.nodes(data=True):
        if data.get("type") not in ("tensor", "index"):
            raise GraphError(
                f"node {node!r:.60} has the type {data.get('type')!r:.40}",
                fix='give every node type="tensor" or type="index", or none of them',
            )
        if data["type"] == "index":
            name = str(data.get("name", node))
            size = data.get("size")
            indices[node] = Index(name, None if size is None else _size(size, f"index {name!r}"))
    _check_distinct(indices.values())
    tensors: Tensors = []
    for node, data in graph.nodes(data=True):
        if data["type"] == "tensor":
            tensors.append(
                ({"name": _tensor_name(node, len(tensors)), **data}, _axes(graph, node, indices))
            )
    return tensors, _output(graph, indices, ())


def _output(
    graph: nx.Graph, known: Mapping[Hashable, Index], default: Iterable[Hashable]
) -> list[Index]:
    """The indices that the graph's attribute "output" lists."""
    order = graph.graph.get("output", default)
    listed = list(order) if isinstance(order, Iterable) and not isinstance(order, str) else [order]
    for name in listed:
        if not isinstance(name, Hashable) or name not in known:
            raise GraphError(
                f"output names {name!r:.60}, which is no open index",
                fix=f"give a list of {list(known)!r:.60}",
            )
    return [known[name] for name in listed]


def _check_distinct(indices: Iterable[Index]) -> None:
    names: set[str] = set()
    for index in indices:
        if index.name in names:
            raise GraphError(f"two indices are called {index.name!r}", fix="rename one of them")
        names.add(index.name)


def _axes(graph: nx.Graph, node: Hashable, indices: Mapping[Hashable, Index]) -> list[Index]:
    found: dict[int, Index] = {}
    for _, other, data in graph.edges(node, data=True):
        axis = data.get("axis")
        if other not in indices or not isinstance(axis, int) or axis in found:
            raise GraphError(
                f"the edge from {node!r:.60} to {other!r:.60} has axis {axis!r:.40}",
                fix="an edge joins a tensor and an index, with axis = 0, 1, … once each",
            )
        found[axis] = indices[other]
    if sorted(found) != list(range(len(found))):
        raise GraphError(f"the axes of {node!r:.60} are {sorted(found)}", fix="count from 0")
    return [found[axis] for axis in range(len(found))]


def _tensor_name(node: Hashable, position: int) -> str:
    text = str(node)
    return text if all(is_plain_identifier(part) for part in text.split(".")) else f"t{position}"


def _plain(
    graph: nx.Graph,
) -> tuple[Tensors, list[Index]]:
    """Tensors and output of a graph whose nodes are tensors and whose edges are indices."""
    axes: dict[Hashable, list[Index]] = {node: [] for node in graph}
    names: set[str] = set()
    for number, (a, b, data) in enumerate(graph.edges(data=True)):
        name = str(data.get("name", f"e{number}"))
        size = data.get("size")
        if name in names:
            raise GraphError(f"two edges are called {name!r}", fix="rename one of them")
        names.add(name)
        index = Index(name, None if size is None else _size(size, f"edge {name!r}"))
        axes[a].append(index)
        axes[b].append(index)
    opened: dict[Hashable, Index] = {}
    for node, data in graph.nodes(data=True):
        stubs = data.get("open") or {}
        if not isinstance(stubs, Mapping):
            raise GraphError(
                f"open of node {node!r:.60} is {stubs!r:.60}",
                fix="give a dict from the names of its open indices to their sizes",
            )
        for name, size in stubs.items():
            index = Index(name, None if size is None else _size(size, f"open index {name!r}"))
            if name in names or opened.setdefault(name, index) != index:
                raise GraphError(f"two indices are called {name!r}", fix="rename one of them")
            axes[node].append(index)
    tensors = [
        ({"name": _tensor_name(node, k), **graph.nodes[node]}, axes[node])
        for k, node in enumerate(graph)
    ]
    return tensors, _output(graph, opened, opened)
