"""Whether what follows a loop may be done with a part of its sum: sums of results are then right.

True where every result depends on the loop exactly once, by steps that add up: f(a + b) = f(a) +
f(b). Then ranks may share the blocks of the loop, and add up at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tncompiler.ir.program import (
    Cast,
    Concat,
    Fold,
    Map,
    Merge,
    Networks,
    Pad,
    Permute,
    Program,
    Slice,
    Split,
    Step,
    Unfold,
)
from tncompiler.ir.stacking import Member

_MOVES = (Permute, Split, Merge, Slice, Pad, Concat, Member, Unfold, Fold)
_ADDITIVE = ("add", "sub", "neg", "conj", "real", "imag", "project")
_EXACT = ("bool",)  # dtypes in which a sum of parts is not a part of the sum


def adds_up(body: Program, made: Collection[str]) -> bool:
    """Whether the body's results are additive in the values `made`, taken together."""
    degrees = degrees_of(body, made)
    return all(degrees.get(name, 0) == 1 for name in body.outputs)


def degrees_of(body: Program, made: Collection[str]) -> dict[str, int | None]:
    """How often each value that depends on those `made` has one as a factor; None if it has them
    in another way."""
    degrees: dict[str, int | None] = dict.fromkeys(made, 1)
    for step in body.steps:
        if step.out.name not in degrees and any(name in degrees for name in step.operands):
            degrees[step.out.name] = _degree(step, [degrees.get(n, 0) for n in step.operands])
    return degrees


def _degree(step: Step, operands: Sequence[int | None]) -> int | None:
    """How often a step's value has the sum as a factor; None if it is no matter of factors."""
    if None in operands or step.out.dtype in _EXACT:
        return None
    known = [degree for degree in operands if degree is not None]
    op = step.op
    if isinstance(op, Networks):
        return sum(known)
    if isinstance(op, Map) and op.function == "div":
        return known[0] if known[1] == 0 else None
    same = len(set(known)) == 1
    if isinstance(op, _MOVES) or (isinstance(op, Map) and op.function in _ADDITIVE):
        return known[0] if same else None
    if isinstance(op, Cast) and step.out.dtype.startswith(("float", "complex")):
        return known[0]
    return None
