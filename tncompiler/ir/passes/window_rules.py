"""Derivatives of steps with windows: a convolution's are convolutions with the same windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.ir.program import (
    Convolve,
    Fold,
    Step,
    Unfold,
    Value,
    label_names,
)

if TYPE_CHECKING:
    from tncompiler.ir.passes.adjoint import _Reverse
    from tncompiler.ir.passes.tangent import _Forward


def convolve_adjoint(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    """∂/∂operand: the cotangent and the conjugate of the other operand, same windows."""
    op: Convolve = step.op  # type: ignore[assignment]
    names = label_names(op, operands, step.out)
    for position, target in enumerate(operands):
        if target.name not in rev.active:
            continue
        rest = [k for k in range(len(operands)) if k != position]
        values = [cotangent, *(rev.conj(operands[k]) for k in rest)]
        wires = (op.output, *(op.inputs[k] for k in rest))
        wanted = op.inputs[position]
        reverse = Convolve(wires, wanted, op.relations)
        axes = [names[label] for label in wanted]
        rev.give(target, rev.builder.convolve(values, reverse, target.shape, axes))


def unfold_adjoint(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    op: Unfold = step.op  # type: ignore[assignment]
    (source,) = operands
    size, name = source.shape[op.axis], source.axes[op.axis]
    rev.give(source, rev.builder.fold(cotangent, op.axis, op.geometry, size, name))


def fold_adjoint(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Fold = step.op  # type: ignore[assignment]
    (source,) = operands
    out, kernel = source.shape[op.axis : op.axis + 2]
    names = source.axes[op.axis : op.axis + 2]
    rev.give(source, rev.builder.unfold(cotangent, op.axis, op.geometry, (out, kernel), names))


def window_adjoint(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    """A window is made of nothing."""


def convolve_tangent(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    """The product rule: one term per moving operand."""
    op: Convolve = step.op  # type: ignore[assignment]
    terms = []
    for position, operand in enumerate(operands):
        moved = fwd.of(operand)
        if moved is not None:
            values = [*operands[:position], moved, *operands[position + 1 :]]
            terms.append(fwd.builder.convolve(values, op, step.out.shape, step.out.axes))
    return fwd.builder.add(terms) if terms else None


def window_tangent(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    """A window does not move."""
    return None
