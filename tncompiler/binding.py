"""Arguments of a call → arrays in order, checked against the leaves; sizes and dtypes read off.

Shared by the torch module and the NumPy function: anything with `.shape` and `.dtype` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from tncompiler.compiler import Compilation
from tncompiler.ir.dtypes import DEFAULT, dtype_name, is_differentiable, kind
from tncompiler.ir.errors import (
    ArgumentCountError,
    ArgumentError,
    ArraySizeClash,
    DTypeError,
    EmptyReduction,
    PositionError,
    ShapeError,
    SizeEquationError,
    TncError,
)
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.names import SEED
from tncompiler.ir.sizes import evaluate, render_size, solve_all, solve_for, substitute


@dataclass(frozen=True, slots=True)
class Call:
    """What a call's arrays say: dtypes of all leaves, the free sizes, and all sizes."""

    dtypes: tuple[str, ...]
    free: dict[sympy.Symbol, int]
    sizes: dict[sympy.Symbol, int]


def order_inputs(
    compilation: Compilation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    seed: Callable[[], Any],
) -> tuple[Any, ...]:
    """Positional and named arguments in the order of the inputs. Raises ArgumentError.

    ``seed`` makes the one of dropout where none is given.
    """
    inputs = compilation.inputs
    names = [leaf.name for leaf in inputs]
    shown = ", ".join(names) or "no inputs"
    if len(args) > len(names):
        raise ArgumentCountError(
            f"{len(args)} inputs are given, but the network takes {len(names)}",
            where=compilation.place(),
            fix=f"give {shown}",
        )
    found = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        name = key if key in names else next((n for n in names if n.replace(".", "_") == key), key)
        if name not in names:
            raise ArgumentError(
                f"there is no input {key!r:.80}",
                where=compilation.place(),
                fix=f"the inputs are: {shown}",
            )
        if name in found:
            raise ArgumentCountError(
                f"the input {key!r} is given twice", where=compilation.place(), fix="give it once"
            )
        found[name] = value
    if SEED in names and SEED not in found:
        found[SEED] = seed()
    missing = [name for name in names if name not in found]
    if missing:
        raise ArgumentCountError(
            f"the input {missing[0]!r} is missing",
            where=f"the input declared at {compilation.leaves[missing[0]].origin}",
            fix=f"give {shown}",
        )
    return tuple(found[name] for name in names)


def read_call(compilation: Compilation, arrays: Sequence[Any], default: str | None) -> Call:
    """Check arrays (one per leaf, in the compilation's order) and read sizes and dtypes off them.

    ``default`` is the dtype of leaves that declare none; None takes that of the arrays.
    """
    leaves = compilation.ordered
    for leaf, array in zip(leaves, arrays, strict=True):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ArgumentError(
                f"{leaf.kind} {leaf.name!r} is a {type(array).__name__}, not an array",
                where=f"the {leaf.kind} declared at {leaf.origin}",
                fix="give a NumPy array or torch tensor",
            )
    names = [
        dtype_name(array.dtype, f"{leaf.kind} {leaf.name!r}", f"the {leaf.kind} at {leaf.origin}")
        for leaf, array in zip(leaves, arrays, strict=True)
    ]
    if default is None:
        default = next(
            (n for leaf, n in zip(leaves, names, strict=True) if leaf.dtype == DEFAULT), "float32"
        )
    for leaf, name in zip(leaves, names, strict=True):
        _check_dtype(leaf, name, default)
    sizes = read_sizes(compilation, [tuple(array.shape) for array in arrays])
    free = {symbol: sizes[symbol] for symbol in compilation.free_symbols}
    return Call((default, *names), free, sizes)


def _check_dtype(leaf: Leaf, name: str, default: str) -> None:
    wanted = default if leaf.dtype == DEFAULT else leaf.dtype
    own = leaf.kind == "constant" or (leaf.kind == "param" and leaf.dtype != DEFAULT)
    converted = own and kind(name) == kind(wanted)
    if name != wanted and not converted:  # a module's own tensors follow .to(dtype), FSDP2's policy
        raise DTypeError(
            f"{leaf.kind} {leaf.name!r} has dtype {name} where {wanted} is expected",
            where=f"the {leaf.kind} declared at {leaf.origin}",
            fix=f"convert it to {wanted}, or {_accepting(leaf, name)}",
        )


def _accepting(leaf: Leaf, name: str) -> str:
    """How to make a network that takes the dtype."""
    if leaf.dtype == DEFAULT and is_differentiable(name):
        return f"compile with dtype={name!r}"
    return f"declare the {leaf.kind} with dtype={name!r}"


def read_sizes(
    compilation: Compilation, shapes: Sequence[tuple[int, ...]]
) -> dict[sympy.Symbol, int]:
    """All sizes, from the shapes of the leaves in the compilation's order."""
    binding = dict(compilation.binding)
    pending: list[tuple[Leaf, int, int]] = []
    for leaf, shape in zip(compilation.ordered, shapes, strict=True):
        if len(shape) != leaf.ndim:
            raise ShapeError(
                f"{leaf.kind} {leaf.name!r} has shape {shape}, but {leaf.ndim} axes are declared: "
                f"({', '.join(map(str, leaf.indices))})",
                where=f"the {leaf.kind} declared at {leaf.origin}",
                fix="give one axis per index, in this order",
            )
        pending.extend((leaf, axis, int(number)) for axis, number in enumerate(shape))
    pending = [item for item in pending if not _match(item, binding)]
    equations = compilation.equations
    solve_all(equations, binding)
    pending = [item for item in pending if not _match(item, binding)]
    solve_all(equations, binding)
    for leaf, axis, number in pending:
        if not _match((leaf, axis, number), binding):
            raise SizeEquationError(
                f"the sizes in {render_size(leaf.shape[axis])} (axis {axis} of {leaf.name!r}) do "
                "not follow from the inputs",
                where=f"the {leaf.kind} declared at {leaf.origin}",
                fix="give them with sizes=",
            )
    for symbol in compilation.free_symbols:
        if symbol not in binding:
            raise SizeEquationError(
                f"the size {symbol} does not follow from the inputs",
                where=compilation.place(),
                fix="give it with sizes=",
            )
    _check_slices(compilation, binding)
    _check_reductions(compilation, binding)
    return binding


def _check_slices(compilation: Compilation, binding: dict[sympy.Symbol, int]) -> None:
    for node in compilation.slices:
        size = evaluate(node.source.shape[node.axis], binding)
        start, stop = evaluate(node.start, binding), evaluate(node.stop, binding)
        if not 0 <= start <= stop <= size:
            name = node.source.indices[node.axis].name
            raise PositionError(
                f"positions {start} to {stop} do not lie in index {name!r} of size {size}",
                where=f"the slice at {node.origin}",
                fix="0 <= start <= stop <= size",
            )


def _check_reductions(compilation: Compilation, binding: dict[sympy.Symbol, int]) -> None:
    for node in compilation.reductions:
        sizes = {index.name: evaluate(index.size, binding) for index in node.source.indices}
        empty = [index.name for index in node.over if not sizes[index.name]]
        if empty and all(sizes[index.name] for index in node.indices):
            raise EmptyReduction(
                f"the {node.function} over index {empty[0]!r} of size 0 has no value",
                where=f"the expression at {node.origin}",
                fix="give at least one position, or take a sum",
            )


def _match(item: tuple[Leaf, int, int], binding: dict[sympy.Symbol, int]) -> bool:
    leaf, axis, number = item
    try:
        return solve_for(leaf.shape[axis], number, binding, f"axis {axis} of {leaf.name!r}")
    except TncError:
        index = leaf.indices[axis]
        wanted = render_size(substitute(index.size, binding))
        raise ArraySizeClash(
            f"index {index.name!r} has size {wanted} but axis {axis} of {leaf.kind} "
            f"{leaf.name!r} has {number} positions",
            where=f"the {leaf.kind} declared at {leaf.origin}",
            fix="give arrays whose axes of one index have one size",
        ) from None
