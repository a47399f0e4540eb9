"""Scans as JSON and back: the body is data of its own, in which slots are leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tncompiler.ir import expressions as ex
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.scans.make import scan_results
from tncompiler.ir.sizes import parse_size, size_text


def scan_data(node: ex.Scan) -> dict[str, Any]:
    """The fields of a scan's node."""
    from tncompiler.ir.serialize import to_data  # that table names this function

    return {
        "over": [node.over.name, size_text(node.over.size)],
        "inside": to_data((*node.slots, *node.body)),
        "carried": node.carried,
        "sliced": list(node.sliced),
        "joined": list(node.joined),
        "reverse": node.reverse,
    }


def read_scan(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    """The scan's node, checked. Raises ValueError and its like for what is none."""
    from tncompiler.ir.serialize import from_data

    inside, name_size = from_data(data["inside"]), data["over"]
    slots, body = inside[: len(operands)], inside[len(operands) :]
    if not all(isinstance(leaf, Leaf) for leaf in slots):
        raise ValueError("a slot of a scan is no leaf")
    over = Index(name_size[0], parse_size(name_size[1]))
    node = ex.Scan(
        (),
        over,
        operands,
        slots,  # type: ignore[arg-type]
        body,
        _count(data["carried"]),
        _places(data["sliced"]),
        _places(data["joined"]),
        data["reverse"] is True,
    )
    scan_results(node)  # raises where the parts do not fit
    return node


def read_scan_result(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    """One result of a scan."""
    (source,) = operands
    if not isinstance(source, ex.Scan):
        raise ValueError("a result is taken out of what is no scan")
    return scan_results(source)[_count(data["position"])]


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _places(values: Any) -> tuple[int | None, ...]:
    if isinstance(values, Mapping | str):
        raise ValueError("the axes are no list")
    return tuple(None if value is None else _count(value) for value in values)
