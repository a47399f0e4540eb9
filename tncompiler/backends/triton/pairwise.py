"""One launch: a contraction of at most two operands, or a reduction, with what is fused to it.

In: the labels of operands and result. Out: `Pairwise`, whose labels are in groups (batch, M, N, K)
and merged where every array allows it, so that a kernel has few indices to take apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tncompiler.backends.triton.trees import (
    Apply,
    Load,
    Strides,
    Tree,
    labels_of,
    loads,
    map_strides,
)
from tncompiler.ir.dtypes import kind
from tncompiler.ir.program import Labels, Value
from tncompiler.ir.sizes import Size, product

MIN_SIDE = 4  # a matrix product with a shorter side wastes most of a tile of tl.dot
MIN_DEPTH = 8

_GROUPS = ("batch", "m", "n", "k")
_WIDTHS = ("bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128")


@dataclass(frozen=True, slots=True)
class Pairwise:
    """out[batch, m, n] = epilogue(reduction over k of left[batch, m, k] * right[batch, k, n]).

    ``right`` None: one operand. ``reduction``: "dot", "sum", "max", "min", or "map" (nothing is
    reduced); for all but "dot" the labels of the result are all in `m`. ``low``: the dtype that a
    matrix product rounds its operands to, if any. ``diagonal``: the result is zero elsewhere.
    ``sizes`` and ``names`` are by label.
    """

    out: Value
    out_strides: Strides
    reduction: str
    left: Tree
    right: Tree | None
    epilogue: Tree | None
    batch: Labels
    m: Labels
    n: Labels
    k: Labels
    sizes: Mapping[int, Size]
    names: Mapping[int, str]
    low: str | None = None
    diagonal: bool = False

    def extent(self, group: Labels) -> Size:
        return product(self.sizes[label] for label in group)

    @property
    def loads(self) -> list[Load]:
        return loads(self.left, self.right, self.epilogue)

    @property
    def dtype(self) -> str:
        """What the kernel computes in."""
        dtypes = [tree.dtype for tree in (self.left, self.right) if tree is not None]
        return max(dtypes, key=_WIDTHS.index)


def classify(pairwise: Pairwise) -> Pairwise:
    """The launch with its labels in groups, as a matrix product if its sides are long enough.

    In: all labels of the result in `m`, all summed ones in `k`.
    """
    if pairwise.right is not None and pairwise.reduction == "sum":
        pairwise = _as_dot(pairwise)
    if pairwise.right is not None and pairwise.reduction != "dot":
        both = Apply("mul", (pairwise.left, pairwise.right), pairwise.dtype)
        pairwise = replace(pairwise, left=both, right=None)
    return _merged(pairwise)


def split_sum(pairwise: Pairwise, parts: int) -> tuple[Pairwise, Pairwise]:
    """A launch that reduces in `parts` parts, and one that reduces those, always in one order."""
    out, dtype = pairwise.out, _accumulated(pairwise.dtype)
    partial = Value(f"{out.name} parts", (parts, *out.shape), dtype, ("part", *out.axes))
    first = replace(pairwise, out=partial, epilogue=None)
    label = max(pairwise.sizes) + 1
    held = Load(partial, ((label, product(out.shape)), *pairwise.out_strides))
    second = replace(
        pairwise,
        reduction="sum" if pairwise.reduction == "dot" else pairwise.reduction,
        left=held,
        right=None,
        batch=(),
        m=(*pairwise.batch, *pairwise.m, *pairwise.n),
        n=(),
        k=(label,),
        sizes={**pairwise.sizes, label: parts},
        names={**pairwise.names, label: "part"},
    )
    return first, _merged(second)


def sum_of_parts(parts: Value, out: Value) -> Pairwise:
    """The launch that sums an array (part, element) over its parts."""
    part, element = 0, 1
    count = parts.shape[1]
    held = Load(parts, ((part, count), (element, 1)))
    return Pairwise(
        out, ((element, 1),), "sum", held, None, None, (), (element,), (), (part,),
        dict(enumerate(parts.shape)), {part: "part", element: "element"},
    )  # fmt: skip


def _accumulated(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _as_dot(pairwise: Pairwise) -> Pairwise:
    assert pairwise.right is not None
    left, right = labels_of(pairwise.left), labels_of(pairwise.right)
    batch = tuple(k for k in pairwise.m if (k in left) == (k in right))
    m = tuple(k for k in pairwise.m if k in left and k not in right)
    n = tuple(k for k in pairwise.m if k in right and k not in left)
    if kind(pairwise.dtype) == "bool" or not left & right >= set(pairwise.k):
        return pairwise
    sides = ((m, MIN_SIDE), (n, MIN_SIDE), (pairwise.k, MIN_DEPTH))
    if any(_at_most(pairwise.extent(group)) < least for group, least in sides):
        return pairwise
    return replace(pairwise, reduction="dot", batch=batch, m=m, n=n)


def _at_most(size: Size) -> float:
    return size if isinstance(size, int) else float("inf")


# ---------------------------------------------------------------------------- merging labels


def _merged(pairwise: Pairwise) -> Pairwise:
    """Labels of a group become one where every array steps through them alike."""
    pairwise = replace(pairwise, k=_order_summed(pairwise))
    for group in _GROUPS:
        inner = None
        for outer in reversed(getattr(pairwise, group)):
            if inner is not None and _can_merge(outer, inner, pairwise):
                pairwise = _merge(outer, inner, group, pairwise)
            else:
                inner = outer
    return pairwise


def _order_summed(pairwise: Pairwise) -> Labels:
    """The summed labels from the widest stride of the first array that has them to the narrowest.

    Dense arrays list their labels in that order.
    """
    order: list[int] = []
    for load in pairwise.loads:
        order += [label for label, _ in load.strides if label in pairwise.k]
    return tuple(dict.fromkeys(order)) + tuple(k for k in pairwise.k if k not in order)


def _arrays(pairwise: Pairwise) -> list[Strides]:
    return [pairwise.out_strides, *(load.strides for load in pairwise.loads)]


def _can_merge(outer: int, inner: int, pairwise: Pairwise) -> bool:
    for strides in map(dict, _arrays(pairwise)):
        if (outer in strides) != (inner in strides):
            return False
        if outer in strides and strides[outer] != product((pairwise.sizes[inner], strides[inner])):
            return False
    return True


def _merge(outer: int, inner: int, group: str, pairwise: Pairwise) -> Pairwise:
    """`inner` stands for both."""

    def without(strides: Strides) -> Strides:
        return tuple(item for item in strides if item[0] != outer)

    sizes = {**pairwise.sizes, inner: pairwise.extent((outer, inner))}
    names = {**pairwise.names, inner: f"{pairwise.names[outer]}_{pairwise.names[inner]}"}
    left, right, epilogue = (
        tree and map_strides(tree, without)
        for tree in (pairwise.left, pairwise.right, pairwise.epilogue)
    )
    labels = tuple(k for k in getattr(pairwise, group) if k != outer)
    changed = replace(pairwise, left=left, right=right, epilogue=epilogue, sizes=sizes, names=names)  # type: ignore[arg-type]
    grouped: dict[str, Any] = {group: labels}
    return replace(changed, out_strides=without(pairwise.out_strides), **grouped)
