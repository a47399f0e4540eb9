"""A program as launches that fit the GPU it runs on: which of its chains spill shows when compiled.

In: a program. Out: a callable. It runs the fastest plan; where each configuration of one of its
chains spills, the fastest that does without that chain, and so on: pairwise launches in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tncompiler.backends.source import Loaded, Source, load
from tncompiler.backends.triton.emit import emit_without
from tncompiler.backends.triton.stretches import NONE, Refused
from tncompiler.ir.errors import NoConfiguration
from tncompiler.ir.program import Program


class _Attempt(NamedTuple):
    """A plan that has none of the refused chains, and its own chains by kernel, as digests."""

    refused: Refused
    loaded: Loaded
    chains: Mapping[str, str]


class Replanned:
    """Runs as `Loaded` does; ``source`` and ``name`` are those of what runs here so far."""

    def __init__(self, program: Program, entry: str, precision: str) -> None:
        self._program, self._options = program, (entry, precision)
        self._attempt = self._without(NONE)

    @property
    def source(self) -> Source:
        return self._attempt.loaded.source

    @property
    def name(self) -> str:
        return self._attempt.loaded.name

    @property
    def run(self) -> Callable[..., Any]:
        return self._run

    def _run(self, *tensors: Any) -> Any:
        while True:  # a plan has fewer and fewer chains
            attempt = self._attempt
            try:
                return attempt.loaded.run(*tensors)
            except NoConfiguration as error:
                chain = attempt.chains.get(error.where or "")
                if chain is None:
                    raise
                refused = attempt.refused | {chain}
            self._attempt = self._without(refused)

    def _without(self, refused: Refused) -> _Attempt:
        made = emit_without(refused, self._program, *self._options)
        return _Attempt(refused, load(made.source), made.chains)
