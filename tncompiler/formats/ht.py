"""HT (hierarchical Tucker): a tree of small cores over the modes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.balance import balanced_by_name
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.svd import TailBudget, project
from tncompiler.formats.trees import Node, checked_tree, default_tree
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index


@dataclass(frozen=True)
class HT(Format):
    """Hierarchical Tucker format: a factor for each mode, joined by a tree of transfer cores.

                 B1                 the tree ((0, 2), (1, 3)) of 2 + 2 modes,
             r1_3  r2_4             which is the default
             B2      B3
           r1  r3  r2  r4
           U1  V1  U2  V2
           i1  o1  i2  o2

    ``tree``: nested tuples of mode positions, inputs first; each node has two children or more.
    The default is a balanced binary tree over the pairs (i_k, o_k): cut between inputs and outputs,
    at the root, a tree would bound the rank of the matrix.

    Shapes: Uk (i_k, r), Vk (o_k, r); B of a node (bonds of its children, its own bond), the root
            B1 without one of its own. Bonds are called by the modes below them, from 1.
    Cost:   sum of size * r + about r**3 for each inner node stored.
    Error:  hierarchical SVD: exactly the root of the sum of squares of what was left out, at most
            sqrt(2 d - 3) times the best for d modes (Grasedyck 2010, doi:10.1137/090764189).
    Source: Hackbusch & Kühn 2009, doi:10.1007/s00041-009-9094-9.
    Raises: FormatError for a tree that does not hold every mode once.
    """

    tree: Any = None

    def root(self, modes: Modes) -> Node:
        """The dimension tree for some modes."""
        if self.tree is None:
            return default_tree(modes.pair_positions())
        return checked_tree(self.tree, len(modes.all))

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        nodes = self.root(modes).below()
        if not modes.known:
            return tuple(Bond(node.bond) for node in nodes)
        return tuple(Bond(node.bond, node.capacity(modes.numbers())) for node in nodes)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        root = self.root(modes)
        cores = []
        for node, name in _named(root, modes).items():
            own = [] if node is root else [bonds[node.bond]]
            below = [bonds[child.bond] for child in node.children]
            axes = [modes.all[node.modes[0]]] if node.is_leaf else below
            cores.append(param(name, *axes, *own))
        return contract(*cores, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        root = self.root(modes)
        names = _named(root, modes)
        budget = TailBudget(tail, len(ranks))
        rest, axes = weight, list(root.leaves())  # axes: which node each axis of rest stands for
        cores, found = {}, {}
        for node in root.upwards():
            places = [axes.index(part) for part in (node.children or (node,))]
            if node is root:
                cores[names[node]] = rest.transpose(places)
                break
            core, rest = project(rest, places, ranks[node.bond], budget, seed)
            axes = [node, *(axis for k, axis in enumerate(axes) if k not in places)]
            cores[names[node]] = core
            found[node.bond] = core.shape[-1]
        return Factored(
            balanced_by_name(cores), {name: found[name] for name in ranks}, budget.dropped
        )

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        return [Cut(node.modes, ranks[node.bond]) for node in self.root(modes).below()]


def _named(root: Node, modes: Modes) -> dict[Node, str]:
    """The core of every node: B1, … from the root down, then Uk and Vk."""
    inner = [node for node in (root, *root.below()) if not node.is_leaf]
    names = {node: f"B{k}" for k, node in enumerate(inner, start=1)}
    count = len(modes.ins)
    for leaf in root.leaves():
        (position,) = leaf.modes
        names[leaf] = f"U{position + 1}" if position < count else f"V{position - count + 1}"
    return names
