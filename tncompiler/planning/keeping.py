"""Cut a program into what parameters and constants alone make, and the rest.

In: a scheduled inference program. Out: a program that makes the values worth keeping from one call
to the next, and one that reads them after its arguments. Together they compute the same. Outputs,
what they are made of, and views are never kept: a user may write into an output.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.partition import step_symbols
from tncompiler.ir.program import Argument, Literal, Loop, Program, Scan
from tncompiler.planning.memory import is_view, nbytes

LARGEST_KEPT = 2**28  # bytes of all kept values together; beyond, every call makes its own


@dataclass(frozen=True)
class Kept:
    """``prepare`` makes the values named in ``kept`` of parameters and constants, its arguments;
    ``rest`` has the arguments of the whole program, then those values."""

    prepare: Program
    rest: Program
    kept: tuple[str, ...]

    def kept_bytes(self) -> int:
        """Bytes of the values that stay from call to call."""
        return sum(nbytes(self.prepare.values[name]).evaluate({}) for name in self.kept)


def cut_kept(program: Program) -> Kept | None:
    """The cut; None if there is nothing to keep, or too much."""
    kept = _worth_keeping(program)
    if not kept:
        return None
    arguments = tuple(a for a in program.arguments if a.kind in ("param", "constant"))
    prepare = drop_dead_steps(replace(program, arguments=arguments, outputs=kept))
    given = tuple(Argument(program.values[name], "kept") for name in kept)
    steps = tuple(step for step in program.steps if step.out.name not in kept)
    rest = replace(program, arguments=(*program.arguments, *given), steps=steps)
    cut = Kept(replace(prepare, equations=()), drop_dead_steps(rest), kept)
    return cut if cut.kept_bytes() <= LARGEST_KEPT else None


def _worth_keeping(program: Program) -> tuple[str, ...]:
    """The values that only parameters make and that what depends on a call reads, views traced back
    to what they are views of."""
    fixed = _fixed(program) - _behind(program, _fixed(program).intersection(program.outputs))
    found: dict[str, None] = {}
    for step in program.steps:
        if step.out.name not in fixed:
            found.update((name, None) for name in step.operands)
    pending, kept = list(found), dict[str, None]()
    while pending:
        made = program.producers.get(pending.pop())
        if made is None or made.out.name not in fixed or isinstance(made.op, Literal):
            continue
        if is_view(made):
            pending += made.operands
        else:
            kept[made.out.name] = None
    return tuple(name for name in program.producers if name in kept)


def _fixed(program: Program) -> set[str]:
    """Every computed value that depends on parameters, constants and known sizes alone."""
    moving = {a.value.name for a in program.arguments if a.kind not in ("param", "constant")}
    for step in program.steps:
        loops = isinstance(step.op, Loop | Scan)  # a size in it may be one that a call brings
        if loops or moving.intersection(step.operands) or step_symbols(step):
            moving.add(step.out.name)
    return set(program.producers) - moving


def _behind(program: Program, names: Collection[str]) -> set[str]:
    """The values named, and all that they are made of."""
    found: set[str] = set(names)
    for step in reversed(program.steps):
        if step.out.name in found:
            found.update(step.operands)
    return found
