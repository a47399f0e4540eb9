"""`contract_path`: the order of an equation's contraction, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from tncompiler.drop_in.optimize import read_optimize
from tncompiler.ir.equation import Equation, resolve, split_operands
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.interchange.equations import shape_of
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair, order_of_path, ssa_to_linear
from tncompiler.planning.report import PathInfo, path_info
from tncompiler.planning.search import contraction_order


def contract_path(
    *operands: Any,
    optimize: Any = "auto",
    memory_limit: Any = None,
    shapes: bool = True,
    use_blas: bool = True,
) -> tuple[list[tuple[int, ...]], PathInfo]:
    """The order in which `einsum` contracts, and a report that prints as a table.

    Operands are shapes or arrays: `contract_path("ij,jk,kl->il", (8, 2), (2, 9), (9, 3))`. The path
    is linear, as opt_einsum's: positions in the list of what is left, results go to its end.
    ``shapes`` and ``use_blas`` are opt_einsum's and change nothing.
    """
    terms, output, given = split_operands(operands)
    equation = resolve(terms, output, integer_shapes(given))
    pairs = order_of(equation, read_optimize(optimize, memory_limit))
    return list(ssa_to_linear(pairs, len(given))) or [(0,)], path_info(equation, pairs)


def integer_shapes(operands: Sequence[Any]) -> list[tuple[int, ...]]:
    """The shapes that operands have, or are, as integers."""
    shapes = []
    for position, operand in enumerate(operands):
        given = shape_of(position, operand)
        try:
            shape = tuple(index(size) for size in given)
        except TypeError:
            shape = (-1,)
        if min(shape, default=0) < 0:
            raise ArgumentError(
                f"operand {position} is {operand!r:.60}", fix="give an array, or a shape: (2, 3)"
            )
        shapes.append(shape)
    return shapes


def order_of(equation: Equation, options: PlanOptions) -> tuple[Pair, ...]:
    """SSA pairs over all operands; those without indices are multiplied last."""
    count = len(equation.inputs)
    numbers = {label: k for k, label in enumerate(equation.sizes)}
    wires = [tuple(numbers[label] for label in term) for term in equation.inputs]
    tensors = [k for k in range(count) if wires[k]]
    sizes = {numbers[label]: size for label, size in equation.sizes.items()}
    output = tuple(numbers[label] for label in equation.output)
    if options.path is not None:
        return order_of_path(options.path, count, ())
    found = contraction_order([wires[k] for k in tensors], output, sizes, options)
    names = [*tensors, *range(count, count + len(found))]
    pairs = [(names[a], names[b]) for a, b in found]
    left = [k for k in range(count) if not wires[k]]
    if tensors:
        left.append(count + len(pairs) - 1 if pairs else tensors[0])
    while len(left) > 1:
        pairs.append((left.pop(0), left.pop(0)))
        left.append(count + len(pairs) - 1)
    return tuple(pairs)
