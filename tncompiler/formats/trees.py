"""Dimension trees: nested sets of modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tncompiler.ir.errors import FormatError


@dataclass(frozen=True, slots=True)
class Node:
    """``modes``: the positions below the node, ascending; ``children``: none for a leaf."""

    modes: tuple[int, ...]
    children: tuple[Node, ...] = ()

    @property
    def is_leaf(self) -> bool:
        return not self.children

    @property
    def bond(self) -> str:
        """The name of the edge to the parent, by the modes below it."""
        return "r" + "_".join(str(mode + 1) for mode in self.modes)

    def capacity(self, sizes: Sequence[int]) -> int:
        """The most that the edge to the parent can carry."""
        below = prod(sizes[mode] for mode in self.modes)
        return min(below, prod(sizes) // max(below, 1))

    def below(self) -> tuple[Node, ...]:
        """All nodes under this one, parents before children."""
        return tuple(n for child in self.children for n in (child, *child.below()))

    def leaves(self) -> tuple[Node, ...]:
        """The leaves, in the order of their modes."""
        found = [node for node in (self, *self.below()) if node.is_leaf]
        return tuple(sorted(found, key=lambda node: node.modes))

    def upwards(self) -> Iterator[Node]:
        """This node and all under it, children before parents."""
        for child in self.children:
            yield from child.upwards()
        yield self


def default_tree(groups: Sequence[tuple[int, ...]]) -> Node:
    """A balanced binary tree over groups of modes."""
    if len(groups) > 1:
        half = (len(groups) + 1) // 2
        return _join((default_tree(groups[:half]), default_tree(groups[half:])))
    leaves = tuple(Node((mode,)) for mode in groups[0])
    return _join(leaves) if len(leaves) > 1 else leaves[0]


def checked_tree(tree: Any, count: int) -> Node:
    """The tree of nested tuples. Raises FormatError unless every mode stands in it once."""
    root = _read(tree, tree)
    if root.is_leaf or root.modes != tuple(range(count)):
        raise FormatError(
            f"the tree {tree!r} does not hold each of the positions 0 to {count - 1} once",
            fix="nest the positions of all modes, inputs first: ((0, 2), (1, 3))",
        )
    return root


def _read(tree: Any, whole: Any) -> Node:
    if isinstance(tree, int) and not isinstance(tree, bool):
        return Node((tree,))
    if not isinstance(tree, Sequence) or isinstance(tree, str) or len(tree) < 2:
        raise FormatError(
            f"the tree {whole!r} has the node {tree!r}",
            fix="a node is the position of a mode, or a tuple of two nodes or more",
        )
    return _join(tuple(_read(part, whole) for part in tree))


def _join(children: tuple[Node, ...]) -> Node:
    return Node(tuple(sorted(mode for child in children for mode in child.modes)), children)
