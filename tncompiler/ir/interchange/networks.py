"""The one network that an expression is."""

from __future__ import annotations

import networkx as nx

from tncompiler.ir import algebra
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import EquationError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.lower import lower
from tncompiler.ir.network import TensorNetwork, network_of
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes
from tncompiler.ir.program import Contract


def only_network(expr: Expr) -> TensorNetwork:
    """The one network that an expression is, nested contractions and deltas absorbed.

    Raises: EquationError naming what else it computes.
    """
    undecided = {leaf.name: DEFAULT for leaf in expr.leaves}
    program = run_passes(lower((expr,), dtypes=undecided), LOGICAL_PASSES)
    steps = program.steps or lower((algebra.contract(expr, out=expr.indices),)).steps
    others = [step for step in steps if not isinstance(step.op, Contract)]
    if others or len(steps) > 1:
        what = type(others[0].op).__name__.lower() if others else "a second contraction"
        raise EquationError(
            f"the expression is more than one contraction of leaves: it holds {what}",
            where=repr(expr),
            fix="take a part of it that is a network, or keep the whole with expr.to_json()",
        )
    if steps:
        return network_of(program, steps[0])
    return _single_leaf(expr)


def _single_leaf(expr: Expr) -> TensorNetwork:
    (leaf,) = expr.leaves
    graph: nx.MultiGraph = nx.MultiGraph()
    graph.add_node(("tensor", 0), name=leaf.name, kind=leaf.kind)
    for label, index in enumerate(expr.indices):
        graph.add_node(("index", label), name=index.name, size=index.size, open=True)
        graph.add_edge(("tensor", 0), ("index", label), key=label, axis=label)
    return TensorNetwork(leaf.name, nx.freeze(graph), tuple(range(expr.ndim)))
