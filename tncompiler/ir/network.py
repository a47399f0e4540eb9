"""One contraction as a frozen bipartite graph: tensor nodes, index nodes, one edge per axis.

This form alone shows hyperedges (an index on three tensors, or on two and the output) and repeated
indices (two edges between one tensor and one index). It is what is planned and drawn.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import networkx as nx

from tncompiler.ir.program import (
    Argument,
    Labels,
    Networks,
    Program,
    Step,
    label_names,
    label_sizes,
    operand_values,
    relations_of,
)
from tncompiler.ir.sizes import Size, render_size

TensorNode = tuple[str, int]


@dataclass(frozen=True)
class TensorNetwork:
    """`graph` has nodes ("tensor", k) with `name` and `kind`, and ("index", label) with `name`,
    `size` and `open`; an edge carries its `axis`. ``output`` orders the open labels and may repeat
    one.
    """

    name: str
    graph: nx.MultiGraph
    output: Labels

    @property
    def tensors(self) -> tuple[str, ...]:
        """Tensor names, by position."""
        nodes = [n for n in self.graph if n[0] == "tensor"]
        return tuple(self.graph.nodes[n]["name"] for n in sorted(nodes))

    @property
    def inputs(self) -> tuple[Labels, ...]:
        """The labels of each tensor, in axis order."""
        result = []
        for position in range(len(self.tensors)):
            edges = self.graph.edges(("tensor", position), data="axis")
            ordered = sorted((axis, index[1]) for _, index, axis in edges)
            result.append(tuple(label for _, label in ordered))
        return tuple(result)

    @property
    def sizes(self) -> dict[int, Size]:
        """The size of each label."""
        return {n[1]: self.graph.nodes[n]["size"] for n in self.graph if n[0] == "index"}

    def index_name(self, label: int) -> str:
        return str(self.graph.nodes[("index", label)]["name"])

    def hyperedges(self) -> tuple[int, ...]:
        """Labels with more than two ends, the output counted as one."""
        ends = {n[1]: self.graph.degree(n) for n in self.graph if n[0] == "index"}
        return tuple(k for k, degree in ends.items() if degree + (k in self.output) > 2)

    def to_text(self) -> str:
        """One line a tensor and the output."""
        lines = [f"network {self.name}"]
        for name, labels in zip(self.tensors, self.inputs, strict=True):
            lines.append(f"  {name}({', '.join(map(self._index_text, labels))})")
        lines.append(f"  -> ({', '.join(map(self._index_text, self.output))})")
        return "\n".join(lines)

    def _index_text(self, label: int) -> str:
        return f"{self.index_name(label)}:{render_size(self.sizes[label])}"


def network_of(program: Program, step: Step) -> TensorNetwork:
    """The network of a contraction step; its windows are tensors after the others."""
    op: Networks = step.op  # type: ignore[assignment]
    operands = operand_values(program, step)
    names, sizes = label_names(op, operands, step.out), label_sizes(op, operands, step.out)
    kinds = {argument.value.name: argument.kind for argument in program.arguments}
    graph: nx.MultiGraph = nx.MultiGraph()
    for label in sizes:
        node: Hashable = ("index", label)
        graph.add_node(node, name=names[label], size=sizes[label], open=label in op.output)
    for position, (value, labels) in enumerate(zip(operands, op.inputs, strict=True)):
        tensor = ("tensor", position)
        graph.add_node(tensor, name=value.name, kind=kinds.get(value.name, "intermediate"))
        for axis, label in enumerate(labels):
            graph.add_edge(tensor, ("index", label), key=axis, axis=axis)
    for position, relation in enumerate(relations_of(op), len(operands)):
        tensor = ("tensor", position)
        graph.add_node(tensor, name="window", kind="intermediate")
        for axis, label in enumerate(relation.labels):
            graph.add_edge(tensor, ("index", label), key=axis, axis=axis)
    return TensorNetwork(step.out.name, nx.freeze(graph), op.output)


def network_of_argument(argument: Argument) -> TensorNetwork:
    """A tensor on its own, every axis open."""
    value = argument.value
    labels = tuple(range(len(value.shape)))
    graph: nx.MultiGraph = nx.MultiGraph()
    graph.add_node(("tensor", 0), name=value.name, kind=argument.kind)
    for label, name, size in zip(labels, value.axes, value.shape, strict=True):
        graph.add_node(("index", label), name=name, size=size, open=True)
        graph.add_edge(("tensor", 0), ("index", label), key=label, axis=label)
    return TensorNetwork(value.name, nx.freeze(graph), labels)


def networks_of(program: Program) -> tuple[TensorNetwork, ...]:
    """The network of every contraction of a program."""
    return tuple(network_of(program, s) for s in program.steps if isinstance(s.op, Networks))
