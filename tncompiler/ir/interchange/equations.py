"""Einsum equations as expressions, and expressions as equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tncompiler.ir import algebra
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.equation import Dots, Equation, Label, parse_text, resolve, split_operands
from tncompiler.ir.errors import ArgumentCountError, ArgumentError, EquationError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.networks import only_network
from tncompiler.ir.sizes import Size


def from_einsum(equation: Any, *operands: Any, names: Sequence[str] | None = None) -> Expr:
    """The expression that an equation says: `from_einsum("bi,ij->bj", x, A)`.

    An operand is an expression, whose axes are matched by position, a shape, or an array, of which
    only shape and dtype are taken; a shape or array becomes an input called x0, x1, … or as
    ``names`` says. Without operands every size is a symbol named after its index. Operands and
    lists of labels may alternate, as in NumPy.

    Raises: EquationError, ArgumentCountError, ShapeError, SizeClash, UnknownOutputIndex,
    RepeatedOutputIndex.
    """
    if not operands and isinstance(equation, str):
        operands = _free_shapes(equation)
    terms, output, given = split_operands((equation, *operands))
    if names is not None and len(names) != len(given):
        raise ArgumentCountError(
            f"{len(names)} names are given for {len(given)} operands", fix="give one for each"
        )
    resolved = resolve(terms, output, [shape_of(k, operand) for k, operand in enumerate(given)])
    chosen = [f"x{k}" for k in range(len(given))] if names is None else list(names)
    indices = _indices(resolved.sizes)
    tensors = []
    for k, (operand, term) in enumerate(zip(given, resolved.inputs, strict=True)):
        own = [indices[label] for label in term]
        for axis in resolved.broadcast[k]:
            own[axis] = Index(f"{chosen[k]}.{axis}", 1)
        tensors.append(wired(operand, own, chosen[k]))
    return algebra.contract(*tensors, out=[indices[label] for label in resolved.output])


def _free_shapes(equation: str) -> tuple[tuple[Size, ...], ...]:
    terms, _ = parse_text(equation)
    if any(... in term for term in terms):
        raise EquationError(
            'the axes under "..." are unknown without shapes',
            where=f"the equation {equation!r:.80}",
            fix="give a shape for each operand, or name the axes",
        )
    sizes = {k: i.size for k, i in _indices({k: None for t in terms for k in t}).items()}
    return tuple(tuple(sizes[label] for label in term) for term in terms)


def shape_of(position: int, operand: Any) -> tuple[Size, ...]:
    """The shape that an operand has, or is."""
    if hasattr(operand, "shape"):
        return tuple(operand.shape)
    if isinstance(operand, int | float | complex):
        return ()
    if isinstance(operand, tuple | list):
        nested = any(isinstance(size, tuple | list) for size in operand)
        return _nested_shape(position, operand) if nested else tuple(operand)
    raise ArgumentError(
        f"operand {position} is {operand!r:.60}", fix="give an expression, a shape or an array"
    )


def _nested_shape(position: int, values: Any) -> tuple[int, ...]:
    """The shape of an array written as lists of lists."""
    if not isinstance(values, tuple | list):
        return ()
    shapes = {_nested_shape(position, value) for value in values}
    if len(shapes) > 1:
        raise ArgumentError(f"operand {position} is a ragged list", fix="give an array or a shape")
    return (len(values), *(shapes.pop() if shapes else ()))


def _indices(sizes: Mapping[Label, Any]) -> dict[Label, Index]:
    """An index for each label, under its own name where it can have it."""
    taken: set[str] = set()
    found: dict[Label, Index] = {}
    for label, size in sizes.items():
        name = _index_name(label)
        while name in taken:
            name += "'"
        taken.add(name)
        found[label] = Index(name, size)
    return found


def _index_name(label: Label) -> str:
    if isinstance(label, Dots):
        return f"dots{label.position}"
    name = f"i{label}" if isinstance(label, int) else str(label)
    printable = name.strip() and name.isprintable()
    return name if printable else f"u{'_'.join(str(ord(letter)) for letter in name)}"


def wired(operand: Any, own: Sequence[Index], name: str) -> Expr:
    """The operand with its axes called by the indices of its term; a repeated one is joined."""
    distinct = tuple(dict.fromkeys(own))
    apart = [
        index if index not in own[:axis] else Index(f"{index.name}'{axis}", index.size)
        for axis, index in enumerate(own)
    ]
    if isinstance(operand, Expr):
        tensor = algebra.reindex(operand, tuple(apart))
    else:
        dtype = dtype_name(operand.dtype) if hasattr(operand, "dtype") else None
        tensor = algebra.leaf(name, apart, kind="input", dtype=dtype)
    deltas = [algebra.delta(a, b) for a, b in zip(apart, own, strict=True) if a is not b]
    return algebra.contract(tensor, *deltas, out=distinct) if deltas else tensor


def expression_of(equation: Equation, dtypes: Sequence[str], target: str | None) -> Expr:
    """The equation over inputs x0, x1, … of the given dtypes, computed in `target`."""
    terms: list[Any] = []
    for k, (term, dtype) in enumerate(zip(equation.inputs, dtypes, strict=True)):
        narrow = equation.broadcast[k]
        sizes = [1 if a in narrow else equation.sizes[label] for a, label in enumerate(term)]
        axes = [Index(f"x{k}.{axis}", size) for axis, size in enumerate(sizes)]
        leaf: Expr = algebra.leaf(f"x{k}", axes, kind="input", dtype=dtype)
        terms.extend((leaf if target is None else leaf.astype(target), list(term)))
    return from_einsum(*terms, list(equation.output))


class EinsumEquation(str):
    """An equation, with the leaves that are its operands, in order.

    `tnc.einsum(equation, *(arrays[leaf.name] for leaf in equation.operands))`.
    """

    operands: tuple[Leaf, ...]

    __slots__ = ("operands",)


def to_einsum(expr: Expr) -> EinsumEquation:
    """The equation of an expression that is one contraction of leaves.

    Index names of one letter are kept. Raises EquationError where the expression holds more.
    """
    network = only_network(expr)
    names = {label: network.index_name(label) for label in network.sizes}
    inputs, known = network.inputs, {label for labels in network.inputs for label in labels}
    for label in network.output:
        if label not in known or network.output.count(label) > 1:
            how = "repeats" if label in known else "makes up"
            raise EquationError(
                f"the output {how} index {names[label]!r}, which no equation can say",
                where=repr(expr),
                fix="leave deltas and ones over open indices out of the expression",
            )
    letters = _letters(names)
    left = ",".join("".join(letters[k] for k in labels) for labels in inputs)
    equation = EinsumEquation(f"{left}->{''.join(letters[k] for k in network.output)}")
    leaves = {leaf.name: leaf for leaf in expr.leaves}
    equation.operands = tuple(leaves[name] for name in network.tensors)
    return equation


def _letters(names: Mapping[int, str]) -> dict[int, str]:
    """One letter for each label: its own name if that is one, else the next that is free."""
    kept = {label: name for label, name in names.items() if len(name) == 1 and name.isalpha()}
    taken = set(kept.values())
    fresh = (chr(code) for code in _LETTER_CODES if chr(code) not in taken)
    return {label: kept[label] if label in kept else next(fresh) for label in names}


# a-z, A-Z, then what follows Latin-1, as far as surrogates and beyond them
_LETTER_CODES = (*range(97, 123), *range(65, 91), *range(0xC0, 0xD800), *range(0xE000, 0x110000))
