"""Expressions as JSON and back. Nothing a file holds is executed; every node is checked.

Constants are kept as base64 of their bytes. Callables given as `init` cannot be written down.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tncompiler.ir import algebra
from tncompiler.ir import expressions as ex
from tncompiler.ir.arange import arange
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import FileFormatError, TncError
from tncompiler.ir.expressions import INITIALIZERS, Expr, Leaf, walk
from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.gather_rules import fields as gather_fields
from tncompiler.ir.gather_rules import read_gather, read_scatter
from tncompiler.ir.index import Index
from tncompiler.ir.names import check_index_name
from tncompiler.ir.origin import call_site
from tncompiler.ir.pairs import Leading, LeadingAdjoint
from tncompiler.ir.pairs_rules import fields as leading_fields
from tncompiler.ir.pairs_rules import read_adjoint, read_leading
from tncompiler.ir.scans.make import SLOT, slot
from tncompiler.ir.scans.serialize import read_scan, read_scan_result, scan_data
from tncompiler.ir.sizes import parse_size, size_text
from tncompiler.ir.windowing import window

SCHEMA = 1
_REDUCTIONS = ("max", "min")


def to_json(expr: Expr) -> str:
    """One expression as JSON text. Raises FileFormatError for a callable `init`."""
    return json.dumps(to_data((expr,)), indent=1)


def to_data(outputs: tuple[Expr, ...]) -> dict[str, Any]:
    """Several expressions as JSON data; shared nodes are written once."""
    numbers: dict[int, int] = {}
    nodes: list[dict[str, Any]] = []
    for node in walk(*outputs):
        numbers[id(node)] = len(nodes)
        nodes.append(_node_data(node, [numbers[id(operand)] for operand in node.operands]))
    return {
        "format": "tncompiler expression",
        "schema": SCHEMA,
        "nodes": nodes,
        "outputs": [numbers[id(output)] for output in outputs],
    }


def _index_data(index: Index) -> list[str]:
    return [index.name, size_text(index.size)]


def _node_data(node: Expr, operands: list[int]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": type(node).__name__,
        "indices": [_index_data(index) for index in node.indices],
        "operands": operands,
    }
    data.update(_fields(node))
    return data


def _fields(node: Expr) -> dict[str, Any]:
    match node:
        case Leaf():
            return _leaf_data(node)
        case ex.Literal(value=value):
            return {"value": _number_data(value)}
        case ex.Map() | ex.Reduce():
            over = [i.name for i in node.over] if isinstance(node, ex.Reduce) else None
            return {"function": node.function, **({} if over is None else {"over": over})}
        case ex.Reindex():
            return {"axes": list(node.axes)}
        case ex.Split():
            return {"axis": node.axis, "parts": [_index_data(part) for part in node.parts]}
        case ex.Merge():
            return {"axis": node.axis, "count": node.count, "into": _index_data(node.into)}
        case ex.Slice():
            bounds = [size_text(node.start), size_text(node.stop)]
            return {"axis": node.axis, "bounds": bounds}
        case ex.Pad():
            bounds = [size_text(node.before), size_text(node.after)]
            return {"axis": node.axis, "bounds": bounds}
        case ex.Concat():
            return {"axis": node.axis}
        case ex.Window(geometry=geometry):
            padding = [size_text(geometry.before), size_text(geometry.after)]
            return {"steps": [geometry.stride, geometry.dilation], "padding": padding}
        case ex.Cast():
            return {"dtype": node.dtype}
        case Leading() | LeadingAdjoint():
            return leading_fields(node)
        case Gather() | Scatter():
            return gather_fields(node)
        case ex.Scan():
            return scan_data(node)
        case ex.ScanResult():
            return {"position": node.position}
    return {}


def _leaf_data(leaf: Leaf) -> dict[str, Any]:
    if callable(leaf.init):
        raise FileFormatError(
            f"the init of {leaf.name!r} is a callable, which JSON cannot hold",
            where=f"the {leaf.kind} declared at {leaf.origin}",
            fix="give init= a name or an array",
        )
    init = _array_data(leaf.init) if isinstance(leaf.init, np.ndarray) else leaf.init
    value = None if leaf.value is None else _array_data(leaf.value)
    return {
        "name": leaf.name,
        "leaf": leaf.kind,
        "dtype": leaf.dtype,
        "init": init,
        "value": value,
    }


def _array_data(array: np.ndarray) -> dict[str, Any]:
    raw = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": raw}


def _array_from(data: Any) -> np.ndarray:
    dtype = np.dtype(dtype_name(data["dtype"]))
    raw = base64.b64decode(data["base64"], validate=True)
    return np.frombuffer(raw, dtype=dtype).reshape([int(n) for n in data["shape"]])


def _number_data(value: Any) -> list[str]:
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, float):
        return ["float", value.hex()]
    return ["size", size_text(value)]


def _number_from(data: Any) -> Any:
    kind, *texts = data
    if kind == "complex":
        return complex(float.fromhex(texts[0]), float.fromhex(texts[1]))
    if kind == "float":
        return float.fromhex(texts[0])
    if kind == "size":
        negative = texts[0].startswith("-")
        size: Any = parse_size(texts[0].removeprefix("-"))
        return -size if negative else size
    raise KeyError(kind)


def from_json(text: str) -> Expr:
    """The expression that `to_json` wrote. Raises FileFormatError for anything else."""
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise FileFormatError(
            "the text is no JSON", where=call_site(), fix="give what expr.to_json() wrote"
        ) from None
    outputs = from_data(data)
    if len(outputs) != 1:
        raise FileFormatError(
            f"the text holds {len(outputs)} expressions",
            where=f"the JSON read at {call_site()}",
            fix="one is expected",
        )
    return outputs[0]


def from_data(data: Any) -> tuple[Expr, ...]:
    """The expressions of `to_data`, every node checked anew."""
    _check_header(data)
    nodes: list[Expr] = []
    for position, item in enumerate(data["nodes"]):
        try:
            nodes.append(_node_from(item, nodes))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise FileFormatError(
                f"node {position} of the expression is not valid: {_reason(error)}",
                where=f"the JSON read at {call_site()}",
                fix="write the expression again with to_json()",
            ) from None
    try:
        return tuple(nodes[_natural(k)] for k in data["outputs"])
    except (IndexError, TypeError, ValueError):
        raise FileFormatError(
            "the outputs name no node", where=f"the JSON read at {call_site()}", fix="write it anew"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, TncError):
        return error.what
    if isinstance(error, KeyError):
        return f"{str(error)[:80]} is missing or unknown"
    return f"{type(error).__name__}: {str(error)[:80]}"


def _check_header(data: Any) -> None:
    if not isinstance(data, Mapping) or data.get("format") != "tncompiler expression":
        raise FileFormatError(
            "this is no tncompiler expression",
            where=f"the JSON read at {call_site()}",
            fix="use expr.to_json()",
        )
    if type(data.get("schema")) is not int or data["schema"] != SCHEMA:
        raise FileFormatError(
            f"schema {data.get('schema')!r:.40} is not {SCHEMA}",
            where=f"the JSON read at {call_site()}",
            fix="write it with this version",
        )
    if not isinstance(data.get("nodes"), list) or not isinstance(data.get("outputs"), list):
        raise FileFormatError(
            "nodes or outputs are missing",
            where=f"the JSON read at {call_site()}",
            fix="write it anew",
        )


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no position")
    return value


def _index_from(data: Any) -> Index:
    name, size = data
    return Index(name, parse_size(size))


def _node_from(data: Any, nodes: list[Expr]) -> Expr:
    operands = tuple(nodes[_natural(k)] for k in data["operands"])
    indices = tuple(_index_from(item) for item in data["indices"])
    node = _READERS[data["kind"]](data, indices, operands)
    if node.indices != indices:
        return algebra.reindex(node, indices)
    return node


def _read_leaf(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    if data["leaf"] == SLOT:
        return slot(check_index_name(data["name"]), indices)
    if data["leaf"] not in ("input", "param", "constant"):
        raise ValueError(f"{data['leaf']!r} is no kind of leaf")
    init = data["init"]
    if not isinstance(init, str | None):
        init = _array_from(init)
    elif init is not None and init not in INITIALIZERS:
        raise ValueError(f"there is no initialization {init!r}")
    if (data["value"] is None) == (data["leaf"] == "constant"):
        raise ValueError("constants, and only they, have a value")
    value = None if data["value"] is None else _array_from(data["value"])
    return algebra.leaf(
        data["name"], indices, kind=data["leaf"], dtype=data["dtype"], init=init, value=value
    )


def _read_map(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    checked = algebra.elementwise(data["function"], *operands)
    if len(indices) != len(checked.indices) or set(checked.indices) != set(indices):
        raise ValueError("the indices of a map are not those of its operands")
    return ex.Map(indices, data["function"], operands)


def _read_reduce(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    if data["function"] not in _REDUCTIONS:
        raise ValueError(f"there is no reduction {data['function']!r}")
    return algebra.reduce_over(data["function"], operands[0], data["over"])


def _read_reindex(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    axes = tuple(_natural(axis) for axis in data["axes"])
    if sorted(axes) != list(range(operands[0].ndim)):
        raise ValueError("the axes are no permutation")
    return algebra.reindex(algebra.permute(operands[0], axes), indices)


def _read_merge(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    axis, count = _natural(data["axis"]), _natural(data["count"])
    parts = operands[0].indices[axis : axis + count]
    if len(parts) != count:
        raise ValueError(f"there are no {count} axes to merge")
    return algebra.merge(operands[0], parts, _index_from(data["into"]))


def _read_window(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    source, out, kernel = indices
    stride, dilation = map(_natural, data["steps"])
    padding = tuple(map(parse_size, data["padding"]))
    return window(source, out=out, kernel=kernel, stride=stride, dilation=dilation, padding=padding)


def _axis_index(data: Any, operands: tuple[Expr, ...]) -> Index:
    return operands[0].indices[_natural(data["axis"])]


_READERS: dict[str, Callable[[Any, tuple[Index, ...], tuple[Expr, ...]], Expr]] = {
    "Leaf": _read_leaf,
    "Literal": lambda data, indices, operands: ex.Literal((), _number_from(data["value"])),
    "Delta": lambda data, indices, operands: algebra.delta(*indices),
    "Ones": lambda data, indices, operands: algebra.ones(*indices),
    "Window": _read_window,
    "Contract": lambda data, indices, operands: algebra.contract(*operands, out=indices),
    "Map": _read_map,
    "Reduce": _read_reduce,
    "Reindex": _read_reindex,
    "Split": lambda data, indices, operands: algebra.split(
        operands[0], _axis_index(data, operands), [_index_from(p) for p in data["parts"]]
    ),
    "Merge": _read_merge,
    "Slice": lambda data, indices, operands: algebra.slice_index(
        operands[0], _axis_index(data, operands), *map(parse_size, data["bounds"])
    ),
    "Pad": lambda data, indices, operands: algebra.pad(
        operands[0], _axis_index(data, operands), *map(parse_size, data["bounds"])
    ),
    "Concat": lambda data, indices, operands: algebra.concat(
        operands, indices[_natural(data["axis"])]
    ),
    "Scan": read_scan,
    "ScanResult": read_scan_result,
    "Cast": lambda data, indices, operands: algebra.cast(operands[0], data["dtype"]),
    "Arange": lambda data, indices, operands: arange(*indices),
    "Leading": read_leading,
    "LeadingAdjoint": read_adjoint,
    "Gather": read_gather,
    "Scatter": read_scatter,
}
