"""Write a function for each body that several blocks of a program share, and the calls of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tncompiler.backends.blocks import GIVEN, Block, find_blocks
from tncompiler.ir.errors import UnboundSize
from tncompiler.ir.program import Program

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter


class Shared:
    """The blocks of one program that are calls: which steps they stand for, and how they read.

    ``covered`` are the positions of those steps, ``hidden`` the values that the code around the
    calls has no name for. A value that nobody needs after a block is given away: the function gets
    the last reference, in a list that it empties, so that memory is held no longer than planned.
    """

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        found = find_blocks(emitter.program)
        self.bodies = found.bodies
        self.names = [self._write_function(body) for body in found.bodies]
        blocks = [block for block in found.blocks if self.names[block.body]]
        self.calls = {block.start: block for block in blocks}
        self.covered = {k for block in blocks for k in range(block.start, block.stop)}
        steps = emitter.program.steps
        made = {steps[k].out.name for k in self.covered}
        self.hidden = made.difference(*(block.results for block in blocks))
        self.hidden.update(name for block in blocks for name in self._given_away(block))

    def _write_function(self, body: Program) -> str | None:
        """The name of the function; None where its arguments do not have all its sizes."""
        emitter = self.emitter
        name = emitter.names(("body", len(emitter.functions)), "block", "block")
        try:
            lines = emitter.beside(body, name).function()
        except UnboundSize:
            return None
        emitter.functions += [*lines, "", ""]
        return name

    def _given(self, block: Block) -> list[str]:
        """The arguments that nobody needs afterwards."""
        pairs = zip(block.arguments, self.bodies[block.body].arguments, strict=True)
        return [name for name, own in pairs if own.kind == GIVEN]

    def _given_away(self, block: Block) -> list[str]:
        """Those among them that the code around the call holds: not its own arguments."""
        return [name for name in self._given(block) if name in self.emitter.program.producers]

    def write_call(self, block: Block) -> None:
        """Append the call that stands for a block."""
        emitter, names = self.emitter, self._given(block)
        given = self._refs(names)
        kept = self._refs([name for name in block.arguments if name not in names])
        if given:
            held = emitter.names(("given", emitter.scope), GIVEN, GIVEN)
            emitter.lines.append(f"{held} = [{', '.join(given)}]")
            away = self._refs(self._given_away(block))
            emitter.lines += [f"del {', '.join(away)}"] if away else []
            kept = [held, *kept]
        results = self._refs(block.results)
        call = f"{self.names[block.body]}({', '.join(kept)})"
        emitter.lines.append(f"{', '.join(results)}{',' * (len(results) == 1)} = {call}")
        emitter.owned.difference_update(block.arguments)

    def _refs(self, names: Sequence[str]) -> list[str]:
        return [self.emitter.ref(self.emitter.program.values[name]) for name in names]


def signature(emitter: Emitter) -> tuple[list[str], list[str]]:
    """The parameters of a function, and the lines with which one that is given values begins."""
    arguments = emitter.program.arguments
    kept = [emitter.name(a.value) for a in arguments if a.kind != GIVEN]
    given = [emitter.name(a.value) for a in arguments if a.kind == GIVEN]
    if not given:
        return kept, []
    held = emitter.names(GIVEN, GIVEN, GIVEN)
    taken = f"{', '.join(given)}{',' * (len(given) == 1)} = {held}"
    return [held, *kept], [taken, f"{held}.clear()"]
