"""Members of a stack as statements: in one where many are wanted, else one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.ir.program import Step
from tncompiler.ir.stacking import Member

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter


def write_members(emitter: Emitter, step: Step) -> None:
    """Write all members of a stack, unless an earlier one has brought this one along."""
    if step.out.name in emitter.unpacked:
        return
    values, stack = emitter.program.values, emitter.program.values[step.operands[0]]
    found = {
        other.op.position: other.out.name
        for other in emitter.program.steps
        if isinstance(other.op, Member) and other.operands == step.operands
    }
    emitter.unpacked.update(found.values())
    names = {position: emitter.name(values[name]) for position, name in found.items()}
    source = emitter.ref(stack)
    size = stack.shape[0]
    if isinstance(size, int) and len(names) > size // 4:
        listed = ", ".join(names.get(position, "_") for position in range(size))
        emitter.lines.append(f"{listed} = {emitter.members(source)}")
    else:
        emitter.lines += [f"{name} = {source}[{position}]" for position, name in names.items()]
