"""Write a step at integer positions: a call of the runtime's `take_at`, `add_at` or `max_at`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.backends.naming import comment_name
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_nodes import NAMES
from tncompiler.ir.program import Step, operand_values

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

HELPERS = ("add_at", "max_at", "take_at")


def write_gather(emitter: Emitter, step: Step) -> None:
    """Append the call; the runtime is told what the index is called, for its error."""
    op = step.op
    assert isinstance(op, Gather | Scatter)
    source, ids = operand_values(emitter.program, step)
    table = source if isinstance(op, Gather) else step.out
    index = comment_name(table.axes[op.axis], op.axis)
    helper = "take_at" if isinstance(op, Gather) else f"{NAMES[op.function]}_at"
    library = emitter.library
    emitter.extra.add(f"from tncompiler.backends.{library}.positions import {helper}")
    size = [] if isinstance(op, Gather) else [emitter.size(step.out.shape[op.axis])]
    given = [emitter.ref(source), emitter.ref(ids), *size, str(op.axis), str(op.shared)]
    verb = "read" if isinstance(op, Gather) else "added" if op.function == "sum" else "compared"
    comment = f"{index} {verb} at {emitter.name(ids)}"
    emitter.assign(step, f'{helper}({", ".join(given)}, "{index}")', comment)
