"""The launches of a program, compiled for a GPU that need not be there, with what they take.

In: sources with the shapes of their arguments. Out: `CompiledLaunch`es, in the order of launching.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tncompiler.backends.source import Source
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
    return [[read_launch(found) for found in launches] for launches in json.loads(child.stdout)]


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
