"""Expressions inside a kernel: what one element of a tile is computed from.

Leaves are loads from dense arrays, numbers, and the total that the kernel itself makes; inner nodes
are elementwise functions. Labels are the kernel's own small ints, one for each index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tncompiler.ir.program import Labels, Step, Value
from tncompiler.ir.sizes import Size, product

Strides = tuple[tuple[int, Size], ...]  # (label, how many elements one position goes)


@dataclass(frozen=True, slots=True)
class Load:
    """An element of a dense array, found by its strides along the labels."""

    value: Value
    strides: Strides

    @property
    def dtype(self) -> str:
        return self.value.dtype


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, inlined."""

    step: Step

    @property
    def dtype(self) -> str:
        return self.step.out.dtype


@dataclass(frozen=True, slots=True)
class Total:
    """What the kernel has reduced to."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An elementwise function ("mul" and "cast" besides those of ir.functions)."""

    function: str
    arguments: tuple[Tree, ...]
    dtype: str


Tree = Load | Number | Total | Apply


def leaves(tree: Tree) -> Iterator[Tree]:
    """The leaves, left to right."""
    if isinstance(tree, Apply):
        for argument in tree.arguments:
            yield from leaves(argument)
    else:
        yield tree


def loads(*trees: Tree | None) -> list[Load]:
    """The distinct loads of trees, in order."""
    found = (leaf for tree in trees if tree is not None for leaf in leaves(tree))
    return list(dict.fromkeys(leaf for leaf in found if isinstance(leaf, Load)))


def labels_of(tree: Tree) -> set[int]:
    """The labels that the tree's value depends on."""
    return {label for load in loads(tree) for label, _ in load.strides}


def map_strides(tree: Tree, change: Callable[[Strides], Strides]) -> Tree:
    """The tree with the strides of all its loads changed."""
    if isinstance(tree, Apply):
        return replace(tree, arguments=tuple(map_strides(a, change) for a in tree.arguments))
    return replace(tree, strides=change(tree.strides)) if isinstance(tree, Load) else tree


def dense_strides(shape: tuple[Size, ...], labels: Labels) -> Strides:
    """Strides of an array laid out in the order of its axes; a diagonal's axes add up."""
    strides: dict[int, Size] = {}
    for axis, label in enumerate(labels):
        stride = product(shape[axis + 1 :])
        strides[label] = strides[label] + stride if label in strides else stride
    return tuple(strides.items())
