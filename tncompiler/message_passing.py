"""Message passing on graphs that are given by their edges.

An adjacency is two lists of node numbers, and perhaps a weight for each edge: reading at one end
and adding up at the other is the product with it. What is made is as large as the edges, never as
large as nodes times nodes.
"""

from __future__ import annotations

from typing import Any

from tncompiler.ir import algebra
from tncompiler.ir.expressions import Expr
from tncompiler.ir.gather_nodes import gather, scatter_add, scatter_max
from tncompiler.ir.index import Index


def propagate(values: Any, over: Index, sources: Any, targets: Any, *, weights: Any = None) -> Expr:
    """The product of an adjacency, given by its edges, with values of nodes.

    Shapes: values(…, n, …) along the nodes n = `over`, sources(e) and targets(e) give (…, n, …):
    each target the sum of its edges' `weights`(e, …), 1 without, times the values at their sources.
    Weights may have indices of values too (heads of attention). Cost: edges times what a node has.
    Raises: PositionError in the call, for a number that is no node; DTypeError, for no integers.
    """
    read = gather(values, over, sources)
    read = read if weights is None else read * weights
    return scatter_add(read, targets, over)


def degrees(targets: Any, nodes: Index) -> Expr:
    """How many edges come in at each node."""
    edges = algebra.as_expr(targets).indices
    return scatter_add(algebra.ones(*edges) * 1.0, targets, nodes)


def normalized_weights(sources: Any, targets: Any, nodes: Index) -> Expr:
    """Weights of edges 1 / √(d(source) d(target)), d the number of edges that come in at a node.

    For a symmetric list of edges that has one from each node to itself.
    Source: Kipf & Welling 2017, arXiv:1609.02907.
    """
    scale = algebra.elementwise("rsqrt", degrees(targets, nodes))
    return gather(scale, nodes, sources) * gather(scale, nodes, targets)


def edge_softmax(scores: Any, targets: Any, nodes: Index) -> Expr:
    """Scores of edges made to weights that add up to 1 over the edges of each target.

    Shapes: scores(e, …) at targets(e) give (e, …). Scores are shifted by the largest of their
    target, so that none overflows and of no target all underflow.
    """
    given = algebra.as_expr(scores)
    top = gather(scatter_max(given, targets, nodes), nodes, targets)
    raised = algebra.elementwise("exp", given - algebra.elementwise("stop", top))
    total = gather(scatter_add(raised, targets, nodes), nodes, targets)
    return raised / total
