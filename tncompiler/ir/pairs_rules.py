"""The rules of truncated bonds by stage: lowered, validated, differentiated, lifted, written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.pairs import (
    Leading,
    LeadingAdjoint,
    Pairs,
    PairsAdjoint,
    leading,
    no_second_derivative,
    refuse_complex,
)
from tncompiler.ir.program import Step, Value, fresh_name
from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.ir.lower import _Lowering
    from tncompiler.ir.passes.adjoint import _Reverse
    from tncompiler.ir.passes.tangent import _Forward


def lower_leading(low: _Lowering, node: Leading | LeadingAdjoint) -> Value:
    operands = low.operands(node.operands)
    refuse_complex(operands[0].dtype)
    axes = tuple(index.name for index in node.indices)
    count = node.indices[-1] if isinstance(node, Leading) else node.cotangent.indices[-1]
    kind = Pairs if isinstance(node, Leading) else PairsAdjoint
    op = kind(int(count.size), node.cutoff)
    return low.builder.emit(op, operands, low.shape(node), operands[0].dtype, axes)


def lift(step: Step, operands: Sequence[Expr], values: Sequence[Value]) -> Expr:
    op = step.op
    assert isinstance(op, Pairs | PairsAdjoint)
    taken: list[str] = []
    for axis in step.out.axes:
        taken.append(fresh_name(axis, taken))
    indices = tuple(Index(n, size) for n, size in zip(taken, step.out.shape, strict=True))
    if isinstance(op, Pairs):
        return Leading(indices, operands[0], operands[1], op.cutoff)
    return LeadingAdjoint(indices, operands[0], operands[1], operands[2], op.cutoff)


def expected_shape(step: Step, operands: Sequence[Value]) -> tuple[Size, ...] | None:
    """The shape of the value; None if the operands are no matrices that go together."""
    op = step.op
    assert isinstance(op, Pairs | PairsAdjoint)
    if len(operands) != (2 if isinstance(op, Pairs) else 3):
        return None
    shape = operands[0].shape
    square = len(shape) >= 2 and shape[-1] == shape[-2] and operands[1].shape == shape
    if not square or op.count < 1 or not op.count <= shape[-1]:
        return None
    made = (*shape[:-1], op.count)
    if isinstance(op, Pairs):
        return made
    return (*shape[:-2], 2, *shape[-2:]) if operands[2].shape == made else None


def adjoint(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Pairs = step.op  # type: ignore[assignment]
    left = operands[0]
    rank, dtype = len(left.shape), left.dtype
    shape = (*left.shape[:-2], 2, *left.shape[-2:])
    axes = (*left.axes[:-2], "side", *left.axes[-2:])
    both = rev.builder.emit(
        PairsAdjoint(op.count, op.cutoff), (*operands, cotangent), shape, dtype, axes
    )
    labels = tuple(range(rank + 1))
    kept = (*labels[: rank - 2], *labels[rank - 1 :])
    for side, operand in enumerate(operands):
        part = rev.builder.slice(both, rank - 2, side, side + 1)
        made = rev.builder.contract((part,), (labels,), kept, operand.shape, operand.axes)
        rev.give(operand, made)


def adjoint_again(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> NoReturn:
    raise no_second_derivative()


def tangent(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> NoReturn:
    raise no_second_derivative()


def fields(node: Leading | LeadingAdjoint) -> dict[str, Any]:
    return {"cutoff": node.cutoff.hex()}


def read_leading(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    left, right = operands
    matrices = left.ndim >= 2 and left.shape[-1] == left.shape[-2] and right.shape == left.shape
    if not matrices or indices[:-1] != left.indices[:-1]:
        raise ValueError("the operands are no Gram matrices of one bond")
    return leading(left, right, indices[-1], float.fromhex(data["cutoff"]))


def read_adjoint(data: Any, indices: tuple[Index, ...], operands: tuple[Expr, ...]) -> Expr:
    left, right, cotangent = operands
    size = (*left.shape[:-2], 2, *left.shape[-2:])
    if right.shape != left.shape or tuple(i.size for i in indices) != size:
        raise ValueError("the operands are no Gram matrices of one bond")
    return LeadingAdjoint(indices, left, right, cotangent, float.fromhex(data["cutoff"]))
