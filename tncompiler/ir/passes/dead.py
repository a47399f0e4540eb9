"""Drop steps whose value nobody uses."""

from __future__ import annotations

from tncompiler.ir.program import Program


def drop_dead_steps(program: Program) -> Program:
    """Remove steps that no output depends on. Arguments and outputs stay."""
    live = set(program.outputs)
    for step in reversed(program.steps):
        if step.out.name in live:
            live.update(step.operands)
    return program.with_steps(step for step in program.steps if step.out.name in live)
