"""The bonds of a network as axes of its cores: what changes together when one is resized.

In: the expression of a weight. Out: its bonds by name, each with the axes of cores that meet in it.
Nothing here knows a format: a bond is an index of the network that is summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import networkx as nx

from tncompiler.ir import algebra
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import EquationError, FormatError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.networks import only_network
from tncompiler.ir.network import TensorNetwork
from tncompiler.ir.program import fresh_name

End = tuple[str, int]  # a core and one of its axes
_MOST_ENDS = 16  # of shared cores, up to which all ways to set some of them to zero are tried


@dataclass(frozen=True, slots=True)
class Joint:
    """A bond, or several that are one because they are axes of one shared core.

    ``labels``: of the network. ``edges``: for each label the ends that meet there, in order, one
    as often as it does. ``fixed``: why the bond cannot be resized; None if it can.
    """

    name: str
    size: int
    labels: tuple[int, ...]
    edges: tuple[tuple[End, ...], ...]
    fixed: str | None = None

    @property
    def ends(self) -> tuple[End, ...]:
        """Each end once."""
        return tuple(dict.fromkeys(end for edge in self.edges for end in edge))

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of each core that have the bond's size."""
        names = dict.fromkeys(name for name, _ in self.ends)
        return {name: tuple(a for core, a in self.ends if core == name) for name in names}

    @property
    def is_plain(self) -> bool:
        """Whether it joins two different cores that are used nowhere else along it."""
        return len(self.edges) == 1 and len(self.edges[0]) == 2 and len(self.axes) == 2

    def zeros(self) -> frozenset[End]:
        """Ends whose new channels are zero, so that a grown network is what it was.

        Exactly one end of every edge: with none the network changes, with two of them all gradients
        of the new channels vanish. Raises FormatError where no choice does that (A A^T).
        """
        ends = self.ends[::-1]
        for count in range(1, min(len(ends), _MOST_ENDS) + 1):
            for chosen in combinations(ends, count):
                if all(sum(end in chosen for end in edge) == 1 for edge in self.edges):
                    return frozenset(chosen)
        raise FormatError(
            f"bond {self.name} joins a core with itself: no new channel is zero and still learns",
            fix="give the two sides cores of their own",
        )


def graph_of(network: Expr) -> TensorNetwork:
    """The weight as one contraction of its leaves. Raises FormatError if it is more than one."""
    try:
        return only_network(network)
    except EquationError as error:
        raise FormatError(
            f"the weight has no bonds to resize: {error.what}",
            fix="use a format whose weight is one contraction of its cores",
        ) from None


def joints_of(network: Expr) -> dict[str, Joint]:
    """The bonds of a network by name, in the order of its indices. Raises FormatError."""
    graph = graph_of(network)
    kinds = {leaf.name: leaf.kind for leaf in network.leaves}
    edges = _edges_of(graph)
    found: dict[str, Joint] = {}
    for labels in _tied_labels(edges):
        inner = [label for label in labels if label not in graph.output]
        if not inner:
            continue
        name = fresh_name(graph.index_name(inner[0]), [*found])
        ends = tuple(edges[label] for label in inner)
        size = int(graph.sizes[inner[0]])
        fixed = _obstacle(ends, kinds, len(inner) < len(labels))
        found[name] = Joint(name, size, tuple(inner), ends, fixed)
    return found


def _edges_of(graph: TensorNetwork) -> dict[int, tuple[End, ...]]:
    """The ends of every label, in the order of tensors and axes."""
    edges: dict[int, list[End]] = {label: [] for label in graph.sizes}
    for name, labels in zip(graph.tensors, graph.inputs, strict=True):
        for axis, label in enumerate(labels):
            edges[label].append((name, axis))
    return {label: tuple(ends) for label, ends in edges.items()}


def _tied_labels(edges: Mapping[int, tuple[End, ...]]) -> list[list[int]]:
    """Labels in groups that have one size: those that an axis of a shared core has at its sites."""
    tied: nx.Graph = nx.Graph()
    for label, ends in edges.items():
        tied.add_node(label)
        tied.add_edges_from((label, end) for end in ends)
    parts = nx.connected_components(tied)
    return sorted(sorted(node for node in part if isinstance(node, int)) for part in parts)


def _obstacle(
    edges: tuple[tuple[End, ...], ...], kinds: Mapping[str, Any], has_mode: bool
) -> str | None:
    if has_mode:
        return "it is an axis of a core that is a mode elsewhere"
    fixed = [name for edge in edges for name, _ in edge if kinds.get(name) != "param"]
    if fixed:
        return f"it ends on {fixed[0]}, which is constant"
    return None if all(edges) else "no core has it"


def with_bond(network: Expr, joint: Joint, size: int) -> Expr:
    """The network, as one contraction, with a bond of another size."""
    graph = graph_of(network)
    leaves = {leaf.name: leaf for leaf in network.leaves}
    open_indices = dict(zip(graph.output, network.indices, strict=True))
    taken = [index.name for index in network.indices]
    indices: dict[int, Index] = {}
    for label, old in graph.sizes.items():
        new = Index(graph.index_name(label), size if label in joint.labels else old)
        if label not in open_indices:
            taken.append(fresh_name(new.name, taken))
            new = Index(taken[-1], new.size)
        indices[label] = open_indices.get(label, new)
    terms: list[Expr] = []
    for name, labels in zip(graph.tensors, graph.inputs, strict=True):
        axes = []
        for label in labels:
            axis = indices[label]
            if axis in axes:  # a diagonal
                taken.append(fresh_name(axis.name, taken))
                axis = Index(taken[-1], axis.size)
                terms.append(algebra.delta(indices[label], axis))
            axes.append(axis)
        terms.append(_leaf_on(leaves[name], axes))
    return algebra.contract(*terms, out=network.indices)


def _leaf_on(leaf: Leaf, axes: list[Index]) -> Leaf:
    """The leaf with other axes; initial values of another shape are left out."""
    same = leaf.shape == tuple(axis.size for axis in axes)
    init = leaf.init if same or isinstance(leaf.init, str) else None
    dtype = None if leaf.dtype == DEFAULT else leaf.dtype
    return algebra.leaf(leaf.name, axes, kind=leaf.kind, dtype=dtype, init=init, value=leaf.value)
