"""Checked construction of scans: of cells that were traced, lifted from programs, or read."""

from __future__ import annotations

from collections.abc import Sequence

from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import ScanError
from tncompiler.ir.expressions import Expr, Leaf, walk
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.scope import check_unique, describe

SLOT = "slot"  # the kind of a leaf that stands for a state or a slice inside a cell


def slot(name: str, indices: Sequence[Index]) -> Leaf:
    """A leaf that stands for an argument of a scan inside its body."""
    return Leaf(tuple(indices), name, SLOT)


def scan_results(node: ex.Scan) -> tuple[ex.ScanResult, ...]:
    """The last states, then what the body makes beside them; along `over` where it is joined."""
    _check(node)
    results = []
    for position, (made, axis) in enumerate(zip(node.body, node.joined, strict=True)):
        indices = made.indices if axis is None else (node.over, *made.indices)
        check_unique(indices, f"result {position} of the scan over {node.over.name!r}")
        results.append(ex.ScanResult(indices, node, position))
    return tuple(results)


def _check(node: ex.Scan) -> None:
    """Raises: ScanError where arguments do not fit the cell, or the states do not fit each other.

    What a cell reads must be a slot of it: then no scan can contain itself.
    """
    if not len(node.arguments) == len(node.slots) == len(node.sliced) >= node.carried:
        raise _broken(node, "has another number of arguments than its cell takes")
    if len(node.joined) != len(node.body) or len(node.body) < node.carried:
        raise _broken(node, "has another number of results than its cell")
    for argument, own, axis in zip(node.arguments, node.slots, node.sliced, strict=True):
        _check_argument(node, argument, own, axis)
    for before, after in zip(node.slots[: node.carried], node.body, strict=False):
        if before.shape != after.shape:
            raise _broken(node, f"gives the state {before.name!r} back in another shape")
    own_names = {own.name for own in node.slots}
    if len(own_names) < len(node.slots):
        raise _broken(node, "has two slots of one name")
    for inner in walk(*node.body):
        if isinstance(inner, Leaf) and inner.name not in own_names:
            raise _broken(node, f"reads {inner.name!r}, which is none of its arguments")


def _check_argument(node: ex.Scan, argument: Expr, own: Leaf, axis: int | None) -> None:
    shape = list(argument.shape)
    if axis is not None and (axis not in range(len(shape)) or shape.pop(axis) != node.over.size):
        raise _broken(node, f"takes no position of {describe(argument)} along {node.over}")
    if tuple(shape) != own.shape:
        raise _broken(node, f"gives {describe(argument)} to its cell in another shape")


def _broken(node: ex.Scan, what: str) -> ScanError:
    return ScanError(
        f"the scan over {node.over.name!r} {what}",
        where=f"the scan at {node.origin or call_site()}",
        fix="make scans with tnc.scan(cell, init, inputs, over=…)",
    )
