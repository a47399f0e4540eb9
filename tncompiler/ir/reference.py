"""The reference interpreter: what an expression is worth, and how far a computation may be from it.

In: an expression and one array per leaf name. Out: its value in float64 or complex128 (or the long
ones), and a running bound on the error of computing it with a given eps. It works by name on
expressions and shares nothing with programs, passes and backends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from tncompiler.ir import expressions as ex
from tncompiler.ir import sizes as sz
from tncompiler.ir.arange import Arange
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import ShapeError, SizeEquationError, TncError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.functions import function
from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.index import Index
from tncompiler.ir.pairs import Leading, LeadingAdjoint
from tncompiler.ir.pairs_numbers import Spectrum
from tncompiler.ir.reference_errors import SLACK, UNDECIDED, Rounding, Tensor, map_error
from tncompiler.ir.reference_moves import move_gather, move_scatter
from tncompiler.ir.scans.make import SLOT

SINGLE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class Bounded:
    """A value, and a bound on |computed - value|, elementwise and absolute."""

    value: np.ndarray
    bound: np.ndarray


def evaluate(
    expr: Expr,
    arrays: Mapping[str, Any],
    sizes: Mapping[Any, int] | None = None,
    eps: float = SINGLE,
    *,
    extended: bool = False,
) -> Bounded:
    """The value of an expression and its error bound for arithmetic of the given eps.

    ``sizes`` binds size symbols that follow from no array; ``extended`` computes in long double.
    Raises: ShapeError for an array that does not fit its leaf, UnboundSize, SizeEquationError.
    Cost: networks are contracted pair by pair, the smallest result first.
    """
    return evaluate_all((expr,), arrays, sizes, eps, extended=extended)[0]


def evaluate_all(
    exprs: Sequence[Expr],
    arrays: Mapping[str, Any],
    sizes: Mapping[Any, int] | None = None,
    eps: float = SINGLE,
    *,
    extended: bool = False,
) -> tuple[Bounded, ...]:
    """Several expressions at once; nodes that they share are computed once."""
    interpreter = _Interpreter(exprs, arrays, sizes or {}, eps, extended)
    with np.errstate(all="ignore"):
        for node in ex.walk(*exprs):
            interpreter.node(node)
    results = (interpreter.done[id(expr)] for expr in exprs)
    return tuple(Bounded(np.asarray(r.value), np.asarray(r.errors)) for r in results)


class _Interpreter:
    """One evaluation: sizes, precision, and what each node is worth."""

    def __init__(
        self,
        exprs: Sequence[Expr],
        arrays: Mapping[str, Any],
        sizes: Mapping[Any, int],
        eps: float,
        extended: bool,
    ) -> None:
        self.arrays, self.rounding = arrays, Rounding(eps, _tiny(eps))
        self.real = np.longdouble if extended else np.float64
        self.complex = np.clongdouble if extended else np.complex128
        self.binding = bind_sizes(exprs, arrays, sizes)
        self.done: dict[int, Tensor] = {}
        self.given: Mapping[str, Tensor] = {}  # leaves of the cell that is evaluated
        self.scans: dict[int, tuple[Tensor, ...]] = {}  # results by the id of a scan's node

    def node(self, node: Expr) -> None:
        operands = [self.done[id(operand)] for operand in node.operands]
        self.done[id(node)] = _RULES[type(node)](self, node, *operands)

    def within(self, given: Mapping[str, Tensor]) -> _Interpreter:
        """An interpreter for the cell of a scan, whose leaves are worth what is given."""
        inner = copy(self)
        inner.given, inner.done, inner.scans = given, {}, {}
        return inner

    def size(self, size: sz.Size) -> int:
        return sz.evaluate(size, self.binding)

    def shape(self, node: Expr) -> tuple[int, ...]:
        return tuple(map(self.size, node.shape))

    def precise(self, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype.kind == "c":
            return array.astype(self.complex)
        return array.astype(self.real) if array.dtype.kind == "f" else array


def _tiny(eps: float) -> float:
    """The smallest normal number of the NumPy dtype with this eps (of float32 if there is none)."""
    for dtype in (np.float16, np.float64):
        if math.isclose(eps, float(np.finfo(dtype).eps)):
            return float(np.finfo(dtype).tiny)
    return float(np.finfo(np.float32).tiny)


def bind_sizes(
    exprs: Sequence[Expr], arrays: Mapping[str, Any], sizes: Mapping[Any, int]
) -> dict[sympy.Symbol, int]:
    """The number behind each size symbol, from given sizes, arrays, splits and merges."""
    binding: dict[sympy.Symbol, int] = {}
    for key, number in sizes.items():
        sz.solve_for(key.size if isinstance(key, Index) else key, int(number), binding, "sizes=")
    nodes = list(ex.walk_within(*exprs))
    equations = ex.equations_of(*exprs)
    leaves = [node for node in nodes if isinstance(node, ex.Leaf) and _comes_as_array(node)]
    for _ in range(2):  # an equation may need an array's size and the other way round
        for leaf in leaves:
            _bind_leaf(leaf, np.shape(arrays[leaf.name]), binding)
        sz.solve_all(equations, binding)
    return binding


def _comes_as_array(leaf: ex.Leaf) -> bool:
    return leaf.value is None and leaf.kind != SLOT


def _bind_leaf(leaf: ex.Leaf, shape: tuple[int, ...], binding: dict[sympy.Symbol, int]) -> None:
    try:
        if len(shape) != leaf.ndim:
            raise SizeEquationError("another number of axes")
        for size, number in zip(leaf.shape, shape, strict=True):
            sz.solve_for(size, number, binding, leaf.name)
    except TncError as error:
        wanted = ", ".join(map(str, leaf.indices))
        raise ShapeError(
            f"the array for {leaf.name!r} has shape {shape}, but its indices are ({wanted})",
            fix="give an array with one axis per index, of the sizes that the others have",
        ) from error


# ---------------------------------------------------------------------------- tensors as they are


def _leaf(run: _Interpreter, node: ex.Leaf) -> Tensor:
    if node.name in run.given:
        return run.given[node.name]
    return Tensor(run.precise(node.value if node.value is not None else run.arrays[node.name]))


def _literal(run: _Interpreter, node: ex.Literal) -> Tensor:
    number = node.value if isinstance(node.value, int | float | complex) else run.size(node.value)
    value = run.precise(number if isinstance(number, complex) else float(number))
    exact = complex(number) == complex(np.complex64(number)) or not np.isfinite(number)
    return Tensor(value, None if exact else np.asarray(run.rounding.eps * np.abs(value)))


def _delta(run: _Interpreter, node: ex.Delta) -> Tensor:
    value = np.zeros(run.shape(node), run.real)
    value[(np.arange(value.shape[0]),) * value.ndim] = 1.0
    return Tensor(value)


def _ones(run: _Interpreter, node: ex.Ones) -> Tensor:
    return Tensor(np.ones(run.shape(node), run.real))


def _window(run: _Interpreter, node: ex.Window) -> Tensor:
    value = np.zeros(run.shape(node), run.real)
    before = run.size(node.geometry.before)
    for out, tap in np.ndindex(value.shape[1:]):
        source = out * node.geometry.stride + tap * node.geometry.dilation - before
        if 0 <= source < value.shape[0]:
            value[source, out, tap] = 1.0
    return Tensor(value)


def _arange(run: _Interpreter, node: Arange) -> Tensor:
    return Tensor(np.arange(run.size(node.indices[0].size)))


def _reindex(run: _Interpreter, node: ex.Reindex, source: Tensor) -> Tensor:
    return _moved(source, lambda array: array.transpose(node.axes))


def _reshaped(run: _Interpreter, node: ex.Split | ex.Merge, source: Tensor) -> Tensor:
    shape = run.shape(node)
    return _moved(source, lambda array: array.reshape(shape))


def _slice(run: _Interpreter, node: ex.Slice, source: Tensor) -> Tensor:
    part = (slice(None),) * node.axis + (slice(run.size(node.start), run.size(node.stop)),)
    return _moved(source, lambda array: array[part])


def _pad(run: _Interpreter, node: ex.Pad, source: Tensor) -> Tensor:
    widths = [(0, 0)] * node.ndim
    widths[node.axis] = (run.size(node.before), run.size(node.after))
    return _moved(source, lambda array: np.pad(array, widths))


def _concat(run: _Interpreter, node: ex.Concat, *parts: Tensor) -> Tensor:
    value = np.concatenate([part.value for part in parts], node.axis)
    return Tensor(value, np.concatenate([part.errors for part in parts], node.axis))


def _gather(run: _Interpreter, node: Gather, source: Tensor, ids: Tensor) -> Tensor:
    return _moved(source, move_gather(node, ids.value.astype(np.int64), run.shape(node)))


def _scatter(run: _Interpreter, node: Scatter, source: Tensor, ids: Tensor) -> Tensor:
    """A sum, of at most so many terms as there are ids; the largest is no further off than one."""
    add = move_scatter(node, ids.value.astype(np.int64), run.shape(node))
    if node.function == "max":
        return _moved(source, add)
    length = math.prod(ids.value.shape[axis] for axis in node.summed)
    own = (8.0 + math.sqrt(length) / 16) * run.rounding.eps * add(
        np.abs(source.value)
    ) + run.rounding.tiny
    return Tensor(add(source.value), own + SLACK * add(source.errors))


def _leading(run: _Interpreter, node: Leading, left: Tensor, right: Tensor) -> Tensor:
    """Without a bound: directions of nearly equal singular values turn freely."""
    count = run.size(node.indices[-1].size)
    value = Spectrum(np, left.value, right.value, count, node.cutoff).value
    return Tensor(value, np.full(value.shape, np.inf))


def _leading_adjoint(
    run: _Interpreter, node: LeadingAdjoint, left: Tensor, right: Tensor, cotangent: Tensor
) -> Tensor:
    count = cotangent.value.shape[-1]
    spectrum = Spectrum(np, left.value, right.value, count, node.cutoff)
    value = np.stack(spectrum.gradients(np, cotangent.value), -3)
    return Tensor(value, np.full(value.shape, np.inf))


def _moved(source: Tensor, move: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    error = None if source.error is None else move(source.error)
    return Tensor(move(source.value), error)


def _cast(run: _Interpreter, node: ex.Cast, source: Tensor) -> Tensor:
    """Rounded once; what is truncated may end on the other side of a whole number."""
    if node.dtype == DEFAULT:  # what the run computes in
        is_complex = np.iscomplexobj(source.value)
        value = source.value.astype(run.complex if is_complex else run.real)
        return Tensor(value, source.errors + run.rounding.eps * np.abs(value))
    target = np.dtype("float32" if node.dtype == "bfloat16" else node.dtype)
    if target.kind in "fc":
        value = source.value.real if target.kind == "f" else source.value
        value = value.astype(run.real if target.kind == "f" else run.complex)
        eps = max(
            run.rounding.eps, 2.0**-7 if node.dtype == "bfloat16" else float(np.finfo(target).eps)
        )
        return Tensor(value, source.errors + eps * np.abs(value))
    error = None if source.error is None else np.where(source.error > 0, UNDECIDED, 0.0)
    return Tensor(source.value.astype(target), error)


# ---------------------------------------------------------------------------- contractions


@dataclass(frozen=True, slots=True)
class _Factor:
    """A factor of a network: value, sum of absolute products, and error, over `indices`."""

    indices: tuple[Index, ...]
    value: np.ndarray
    magnitude: np.ndarray
    error: np.ndarray | None


def _contract(run: _Interpreter, node: ex.Contract, *terms: Tensor) -> Tensor:
    factors = [
        _Factor(term.indices, tensor.value, np.abs(tensor.value), tensor.error)
        for term, tensor in zip(node.terms, terms, strict=True)
    ]
    total = _contract_all(run, factors, node.indices)
    summed = {i for term in node.terms for i in term.indices} - set(node.indices)
    exact = len(terms) == 1 and all(run.size(index.size) <= 1 for index in summed)
    if exact:
        return Tensor(total.value, total.error)
    length = math.prod(run.size(index.size) for index in summed - _following(node, summed))
    count = sum(1 for term in node.terms if not isinstance(term, ex.Window))
    factor = 8.0 * math.sqrt(max(1.0, count / 12)) + math.sqrt(length) / 16
    own = factor * run.rounding.eps * total.magnitude + run.rounding.tiny
    if _may_overflow(run, terms, length):
        own = np.full_like(own, np.inf)
    return Tensor(total.value, own if total.error is None else own + SLACK * total.error)


def _following(node: ex.Contract, summed: set[Index]) -> set[Index]:
    """Summed indices whose position follows, through a window, from that of others."""
    found: set[Index] = set()
    for term in node.terms:
        if isinstance(term, ex.Window):
            own = [index for index in term.indices if index in summed and index not in found]
            found.update(own[:1] if len(own) > 1 else ())
    return found


def _may_overflow(run: _Interpreter, terms: Sequence[Tensor], length: int) -> bool:
    """Whether some order of the contraction can leave the range of the numbers it is done in."""
    largest = [float(np.abs(term.value).max(initial=0.0)) for term in terms]
    exponent = math.fsum(math.log2(value) for value in largest if value > 1) + math.log2(
        length or 1
    )
    return exponent > (1020 if run.rounding.eps < SINGLE / 2 else 124)


def _contract_all(run: _Interpreter, factors: list[_Factor], out: tuple[Index, ...]) -> _Factor:
    """Pair by pair, the pair with the smallest result first."""
    while len(factors) > 1:
        best, least = (0, 1), math.inf
        for a in range(len(factors)):
            for b in range(a + 1, len(factors)):
                kept = _kept(factors, (a, b), out)
                count = math.prod(run.size(index.size) for index in kept)
                if count < least:
                    best, least = (a, b), count
        kept = _kept(factors, best, out)
        joined = _joined(factors[best[0]], factors[best[1]], kept)
        factors = [f for k, f in enumerate(factors) if k not in best] + [joined]
    (last,) = factors
    error = None if last.error is None else _einsum((last.error,), (last.indices,), out)
    value = _einsum((last.value,), (last.indices,), out)
    return _Factor(out, value, _einsum((last.magnitude,), (last.indices,), out), error)


def _kept(
    factors: Sequence[_Factor], pair: tuple[int, int], out: tuple[Index, ...]
) -> tuple[Index, ...]:
    """The indices of a pair that the output or another factor still needs."""
    needed = {*out, *(i for k, f in enumerate(factors) if k not in pair for i in f.indices)}
    union = dict.fromkeys((*factors[pair[0]].indices, *factors[pair[1]].indices))
    return tuple(index for index in union if index in needed)


def _joined(a: _Factor, b: _Factor, kept: tuple[Index, ...]) -> _Factor:
    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return _einsum((x, y), (a.indices, b.indices), kept)

    parts = []
    if a.error is not None:
        parts.append(product(a.error, b.magnitude))
    if b.error is not None:
        parts.append(product(a.magnitude if a.error is None else a.magnitude + a.error, b.error))
    error = sum(parts[1:], start=parts[0]) if parts else None
    return _Factor(kept, product(a.value, b.value), product(a.magnitude, b.magnitude), error)


def _einsum(
    arrays: Sequence[np.ndarray], wires: Sequence[tuple[Index, ...]], out: tuple[Index, ...]
) -> np.ndarray:
    """numpy.einsum on integer sublists.

    Not where there is nothing to add: NumPy (2.4) writes one element into an empty result, and one
    of two long doubles is larger than what malloc rounds up to.
    """
    extents = {
        index: extent
        for array, indices in zip(arrays, wires, strict=True)
        for index, extent in zip(indices, array.shape, strict=True)
    }
    if 0 in extents.values():
        return np.zeros([extents[index] for index in out], np.result_type(*arrays))
    numbers = {index: number for number, index in enumerate(extents)}
    arguments: list[Any] = []
    for array, indices in zip(arrays, wires, strict=True):
        arguments += [array, [numbers[index] for index in indices]]
    return np.asarray(np.einsum(*arguments, [numbers[index] for index in out]))


# ---------------------------------------------------------------------------- maps and reductions


def _map(run: _Interpreter, node: ex.Map, *arguments: Tensor) -> Tensor:
    aligned = [
        _moved(tensor, lambda array, arg=arg: _aligned(array, arg, node))  # type: ignore[misc]
        for tensor, arg in zip(arguments, node.arguments, strict=True)
    ]
    shape = run.shape(node)
    values = [tensor.value for tensor in aligned]
    value = np.broadcast_to(function(node.function).reference(*values), shape)
    error = map_error(run.rounding, node.function, aligned, value)
    return Tensor(value, None if error is None else np.broadcast_to(error, shape))


def _aligned(array: np.ndarray, argument: Expr, node: ex.Map) -> np.ndarray:
    """The array with its axes in the order of the node's indices, size 1 where it has none."""
    order = sorted(range(array.ndim), key=lambda axis: node.indices.index(argument.indices[axis]))
    absent = [k for k, index in enumerate(node.indices) if index not in argument.indices]
    return np.expand_dims(array.transpose(order), absent)


def _reduce(run: _Interpreter, node: ex.Reduce, source: Tensor) -> Tensor:
    axes = tuple(node.source.indices.index(index) for index in node.over)
    value = {"max": np.max, "min": np.min}[node.function](source.value, axis=axes)
    return Tensor(value, None if source.error is None else np.max(source.error, axis=axes))


# ---------------------------------------------------------------------------- scans


def _scan(run: _Interpreter, node: ex.Scan, *arguments: Tensor) -> Tensor:
    """Position by position, in order; what is kept are the results."""
    states, rest = list(arguments[: node.carried]), arguments[node.carried :]
    made: list[list[Tensor]] = [[] for _ in node.body[node.carried :]]
    positions = range(run.size(node.over.size))
    for position in reversed(positions) if node.reverse else positions:
        read = [
            tensor if axis is None else _moved(tensor, lambda a, k=axis: a.take(position, k))  # type: ignore[misc] # noqa: B023
            for tensor, axis in zip(rest, node.sliced[node.carried :], strict=True)
        ]
        names = (own.name for own in node.slots)
        inner = run.within(dict(zip(names, (*states, *read), strict=True)))
        for one in ex.walk(*node.body):
            inner.node(one)
        states = [inner.done[id(state)] for state in node.body[: node.carried]]
        for parts, result in zip(made, node.body[node.carried :], strict=True):
            parts.append(inner.done[id(result)])
    results = zip(node.body[node.carried :], node.joined[node.carried :], made, strict=True)
    joined = [_together(run, node, expr, axis, parts) for expr, axis, parts in results]
    run.scans[id(node)] = (*states, *joined)
    return Tensor(np.zeros(()))


def _together(
    run: _Interpreter, node: ex.Scan, result: Expr, axis: int | None, parts: list[Tensor]
) -> Tensor:
    """The positions of a result side by side, or added."""
    parts = parts[::-1] if node.reverse else parts
    shape = (len(parts), *run.shape(result))
    value = np.stack([p.value for p in parts]) if parts else np.zeros(shape, run.real)
    errors = np.stack([p.errors for p in parts]) if parts else np.zeros(shape)
    if axis is not None:
        return Tensor(value, errors)
    own = len(parts) * run.rounding.eps * np.abs(value).sum(0) + run.rounding.tiny
    return Tensor(value.sum(0), errors.sum(0) + own)


def _scan_result(run: _Interpreter, node: ex.ScanResult, source: Tensor) -> Tensor:
    return run.scans[id(node.source)][node.position]


_RULES: dict[type[Expr], Callable[..., Tensor]] = {
    ex.Leaf: _leaf,
    ex.Literal: _literal,
    ex.Delta: _delta,
    ex.Ones: _ones,
    ex.Window: _window,
    ex.Contract: _contract,
    ex.Map: _map,
    ex.Reduce: _reduce,
    ex.Reindex: _reindex,
    ex.Split: _reshaped,
    ex.Merge: _reshaped,
    ex.Slice: _slice,
    ex.Pad: _pad,
    ex.Concat: _concat,
    ex.Cast: _cast,
    Leading: _leading,
    LeadingAdjoint: _leading_adjoint,
    Arange: _arange,
    Gather: _gather,
    Scatter: _scatter,
    ex.Scan: _scan,
    ex.ScanResult: _scan_result,
}
