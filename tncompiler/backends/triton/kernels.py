"""The launches of a program, compiled for a GPU that need not be there, with what they take.

In: programs, or sources with the shapes of their arguments. Out: `CompiledLaunch`es, in the order
of launching; of a program those of the fastest plan that does without chains which spill.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tncompiler.backends.source import Source
from tncompiler.backends.triton.emit import Emitted, emit_without
from tncompiler.backends.triton.stretches import NONE, Refused
from tncompiler.ir.errors import BackendError
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Binding, evaluate

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


@dataclass(frozen=True, slots=True)
class CompiledLaunch:
    """One launch: ``registers`` and ``spill_bytes`` are of a thread, ``shared_bytes`` of a program.

    ``constants``: block sizes and what else is fixed. ``asm`` is PTX (or AMD's assembly),
    ``binary`` the code object.
    """

    name: str
    grid: tuple[int, ...]
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    constants: dict[str, Any]
    asm: str = field(repr=False)
    binary: bytes = field(repr=False)

    def fits(self, target: str) -> bool:
        """Nothing spilled, and shared memory within the chip's limit."""
        return self.spill_bytes == 0 and self.shared_bytes <= SHARED_LIMIT[target]


@dataclass(frozen=True, slots=True)
class Job:
    """A source and the shapes and dtypes of its arguments."""

    source: Source
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    target: str

    def data(self) -> dict[str, Any]:
        return {
            "text": self.source.text,
            "entry": self.source.entry,
            "arguments": self.arguments,
            "target": self.target,
        }


def job_of(program: Program, source: Source, sizes: Binding, target: str) -> Job:
    """The job that compiles a program's source at given sizes."""
    arguments = tuple(
        (tuple(evaluate(size, sizes) for size in a.value.shape), a.value.dtype)
        for a in program.arguments
    )
    return Job(source, arguments, target)


def compile_jobs(jobs: Sequence[Job]) -> list[list[CompiledLaunch]]:
    """Compile in a child process, where the interpreter is switched off.

    Raises: BackendError for an unknown target, and where a kernel does not compile.
    """
    return [[read_launch(found) for found in launches] for launches in _compiled(jobs)]


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """The source and launches of a plan for a target, which has none of the ``refused`` chains."""

    source: Source
    launches: list[CompiledLaunch]
    refused: Refused


def compile_program(
    program: Program, entry: str, precision: str, sizes: Binding, target: str
) -> CompiledProgram:
    """A program in the fastest plan whose chains all have a configuration that spills nothing.

    Raises: BackendError for an unknown target, and where a kernel does not compile.
    """
    refused = NONE
    while True:  # a plan has fewer and fewer chains
        emitted = emit_without(refused, program, entry, precision)
        (found,) = _compiled([job_of(program, emitted.source, sizes, target)])
        spilling = _spilling(emitted, found, target)
        if not spilling:
            launches = [read_launch(launch) for launch in found]
            return CompiledProgram(emitted.source, launches, refused)
        refused |= spilling


def _spilling(emitted: Emitted, found: Sequence[Mapping[str, Any]], target: str) -> Refused:
    """The chains of a plan that have no configuration which runs and spills nothing."""
    unfit = {
        launch["name"]
        for launch in found
        if "error" in launch
        or launch["spill_bytes"]
        or launch["shared_bytes"] > SHARED_LIMIT[target]
    }
    return frozenset(digest for kernel, digest in emitted.chains.items() if kernel in unfit)


def _compiled(jobs: Sequence[Job]) -> list[list[dict[str, Any]]]:
    """What the child says of each job's launches. Raises BackendError."""
    for job in jobs:
        if job.target not in TARGETS:
            raise BackendError(
                f"there is no target {job.target!r:.40}", fix=f"choose one of {', '.join(TARGETS)}"
            )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.run(
        [sys.executable, "-m", "tncompiler.backends.triton.child"],
        input=json.dumps([job.data() for job in jobs]) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise BackendError(f"the kernels did not compile: {reason[0]}")
    return json.loads(child.stdout)  # type: ignore[no-any-return]


def read_launch(found: dict[str, Any]) -> CompiledLaunch:
    """What the child says of one launch. Raises BackendError if its kernel did not compile."""
    if "error" in found:
        raise BackendError(f"the kernel {found['name']} did not compile: {found['error']}")
    return CompiledLaunch(
        found["name"],
        tuple(found["grid"]),
        found["registers"],
        found["spill_bytes"],
        found["shared_bytes"],
        found["num_warps"],
        found["constants"],
        found["asm"],
        base64.b64decode(found["binary"]),
    )
