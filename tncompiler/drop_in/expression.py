"""`einsum_expression`: an equation planned once, for many calls; constants contracted ahead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np

from tncompiler.drop_in.einsum import BACKENDS, check_backend, compute
from tncompiler.drop_in.optimize import read_optimize
from tncompiler.drop_in.paths import integer_shapes, order_of
from tncompiler.ir.equation import Form, resolve, split_operands
from tncompiler.ir.errors import ArgumentCountError, ArgumentError, DTypeError, ShapeError
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import intermediate_labels, ssa_to_linear


def einsum_expression(
    *operands: Any,
    constants: Iterable[int] | Mapping[int, Any] | None = None,
    backend: str = "auto",
    optimize: Any = "auto",
    memory_limit: Any = None,
    use_blas: bool = True,
) -> EinsumExpression:
    """A callable for arrays of given shapes: `f = einsum_expression("ij,jk->ik", (2, 3), (3, 4))`.

    ``constants`` lists positions at which arrays stand instead of shapes (or maps positions to
    arrays); pairs of them that the path contracts are contracted once, and they get no gradients.
    Call it with the remaining arrays, NumPy's or torch's. The other options are those of `einsum`.
    """
    options = read_optimize(optimize, memory_limit)
    positions = _positions(constants)
    if isinstance(constants, Mapping):
        given = list(operands)
        is_text = bool(operands) and isinstance(operands[0], str)
        for position in positions:
            given.insert(position + 1 if is_text else 2 * position, constants[position])
        operands = tuple(given)
    return EinsumExpression(operands, positions, backend, options)


def _positions(constants: Any) -> tuple[int, ...]:
    try:
        return tuple(sorted(index(position) for position in constants or ()))
    except TypeError:
        raise ArgumentError(
            f"constants= is {constants!r:.60}",
            fix="give the positions of the constants, or a dict from positions to arrays",
        ) from None


class EinsumExpression:
    """An equation planned for its shapes, with constants contracted ahead."""

    def __init__(
        self,
        operands: tuple[Any, ...],
        constants: tuple[int, ...],
        backend: str,
        options: PlanOptions,
    ) -> None:
        check_backend(backend, BACKENDS, "arrays")
        terms, output, given = split_operands(operands)
        held = {position: self._constant(given, position) for position in constants}
        self.shapes = integer_shapes([held.get(k, operand) for k, operand in enumerate(given)])
        self.equation = resolve(terms, output, self.shapes)
        self.backend, self.options = backend, options
        self.pairs = order_of(self.equation, options)
        self._open = tuple(k for k in range(len(given)) if k not in held)
        self._fold(held)

    @staticmethod
    def _constant(given: Sequence[Any], position: int) -> Any:
        if not 0 <= position < len(given):
            raise ArgumentError(
                f"constants= names operand {position!r} of {len(given)}", fix="give positions"
            )
        value = given[position]
        if isinstance(value, int | float | complex | list):
            value = np.asarray(value)
        if hasattr(value, "detach"):
            return value.detach()
        if not hasattr(value, "dtype"):
            raise ArgumentError(
                f"operand {position} is a constant, but {value!r:.60} is no array",
                fix="give the array itself at that position",
            )
        return value

    def _fold(self, held: dict[int, Any]) -> None:
        """Contract pairs of constants now; what is left becomes an equation with a path."""
        terms = intermediate_labels(self.equation.inputs, self.equation.output, self.pairs)
        values, steps = dict(held), []
        for made, (a, b) in enumerate(self.pairs, start=len(self.shapes)):
            if a in values and b in values:
                form = ((terms[a], terms[b]), terms[made])
                values[made] = compute(form, (values.pop(a), values.pop(b)), None, self.backend)
            else:
                steps.append((made, a, b))
        order = [*self._open, *sorted(values)]
        numbers = {k: position for position, k in enumerate(order)}
        numbers.update({made: len(order) + k for k, (made, _, _) in enumerate(steps)})
        path = ssa_to_linear([(numbers[a], numbers[b]) for _, a, b in steps], len(order))
        self._form: Form = (tuple(terms[k] for k in order), self.equation.output)
        self._values = [values[k] for k in sorted(values)]
        self._converted: dict[object, list[Any]] = {}
        limit = self.options.memory_limit
        given = path if len(path) > 1 else None
        is_plain = given is None and limit is None
        self._options = None if is_plain else PlanOptions(path=given, memory_limit=limit)

    def __call__(self, *arrays: Any, out: Any = None, backend: str | None = None) -> Any:
        """The result for arrays of the shapes that were given, constants left out."""
        if len(arrays) != len(self._open):
            raise ArgumentCountError(
                f"the expression takes {len(self._open)} arrays, but {len(arrays)} are given",
                where=str(self),
                fix="give one array for each shape; constants are held already",
            )
        for position, array in zip(self._open, arrays, strict=True):
            shape = tuple(getattr(array, "shape", np.shape(array)))
            if shape != self.shapes[position]:
                raise ShapeError(
                    f"operand {position} has shape {shape}, not {self.shapes[position]}",
                    where=str(self),
                    fix="make an expression for other shapes",
                )
        chosen = self.backend if backend is None else backend
        given = (*arrays, *self._constants_like(arrays))
        return compute(self._form, given, self._options, chosen, out)

    def _constants_like(self, arrays: Sequence[Any]) -> list[Any]:
        """The folded constants as the kind of array that a call gives."""
        torch: Any = sys.modules.get("torch")
        tensor = next((a for a in arrays if torch and isinstance(a, torch.Tensor)), None)
        key = None if tensor is None else tensor.device
        if not arrays:
            return self._values
        if key not in self._converted:
            self._converted[key] = [
                _as_numpy(value) if tensor is None else _as_tensor(value, key)
                for value in self._values
            ]
        return self._converted[key]

    def __str__(self) -> str:
        return f"einsum_expression of {len(self.equation.inputs)} operands {self.shapes}"

    __repr__ = __str__


def _as_numpy(value: Any) -> np.ndarray:
    """A constant as an array."""
    if not hasattr(value, "resolve_conj"):
        return np.asarray(value)
    try:
        return value.resolve_conj().resolve_neg().cpu().numpy()  # type: ignore[no-any-return]
    except TypeError:
        raise DTypeError(
            f"NumPy has no dtype for a constant of {value.dtype}", fix="call it with torch tensors"
        ) from None


def _as_tensor(value: Any, device: Any) -> Any:
    """A constant as a tensor."""
    import torch

    try:
        return torch.as_tensor(value, device=device)
    except TypeError:
        raise DTypeError(
            f"torch has no dtype for a constant of {value.dtype}", fix="call it with NumPy arrays"
        ) from None
