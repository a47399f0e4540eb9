"""Write the truncation of a bond: a call of the runtime's `leading_pairs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.program import Step, operand_values

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

HELPERS = ("leading_pairs", "leading_pairs_adjoint")


def write_pairs(emitter: Emitter, step: Step) -> None:
    op = step.op
    assert isinstance(op, Pairs | PairsAdjoint)
    helper = HELPERS[isinstance(op, PairsAdjoint)]
    emitter.extra.add(f"from tncompiler.backends.{emitter.library}.pairs import {helper}")
    operands = [emitter.ref(value) for value in operand_values(emitter.program, step)]
    given = ", ".join([*operands, str(op.count), repr(op.cutoff)])
    emitter.assign(step, f"{helper}({given})", "leading directions of a bond")
