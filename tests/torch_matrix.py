"""The tests of torch's transforms under other versions of torch and Python: `make matrix-torch`.

Each row is a virtual environment of its own, with torch's build for CPUs ("2.6.0+cpu"); the others
bring gigabytes of CUDA along and are installed with `--any-build`. A version or a Python that is
not to be had is named and left out; `PIP_EXTRA_INDEX_URL` may name an index of CPU builds. Kernels
of Triton are tested where torch has a Triton that our backend takes. A row takes 5 to 25 minutes
and writes what pytest says beside its environment, in build/matrix-torch/. Prints a table; exits
with 1 if a row fails.

    make matrix-torch ARGS="--any-build --only python3.11-torch2.6.0"
    make matrix-torch ARGS="--any-build --only torch2.14 --tests compile_once"
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

FOLDER = Path("build/matrix-torch")
PYTHONS = ("3.11", "3.12")
VERSIONS = ("2.6.0", "2.8.0", "2.10.0", "2.13.0", "2.14.1", "2.15.0")
TESTS = ("test_torch_support.py", "test_torch_compiled.py", "test_traced.py", "test_operators.py")
TESTS += ("test_module.py",)
LEAST_TRITON = (3, 7)  # whose interpreter runs with any NumPy
NEEDED = ("pytest", "filelock", "numpy", "scipy", "networkx", "sympy", "cotengra", "cotengrust")
NEEDED += ("threadpoolctl", "tqdm", "rich", "platformdirs", "safetensors", "hypothesis")
NEEDED += ("psutil", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Row:
    """A version of Python and one of torch."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        return f"python{self.python}-torch{self.torch}"

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def log(self) -> Path:
        return FOLDER / f"{self.name}.log"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``passed``: None where the row could not be run; ``text`` says what came out, or why not."""

    passed: bool | None
    text: str
    seconds: float = 0.0


ROWS = tuple(Row(python, version) for python in PYTHONS for version in VERSIONS)


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or among pyenv's."""
    found = shutil.which(f"python{version}")
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(kept[-1]) if kept else found


def pip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def prepare(row: Row, any_build: bool) -> str | None:
    """Make the environment of a row; why it cannot be made, if it can't."""
    python = interpreter(row.python)
    if python is None:
        return f"there is no Python {row.python} here"
    if (row.folder / "ready").exists():
        return None
    subprocess.run([python, "-m", "venv", str(row.folder)], check=True)
    reason: str | None = None
    for build in ("+cpu", "") if any_build else ("+cpu",):
        done = pip(row.folder, "install", "--quiet", f"torch=={row.torch}{build}", *NEEDED)
        if not done.returncode:
            (row.folder / "ready").touch()
            return None
        reason = why_not(done.stderr)
    return reason


def why_not(complaint: str) -> str:
    """Why pip did not install, in a line."""
    if "No matching distribution" in complaint:
        return "there is no such build here"
    lines = complaint.strip().splitlines() or ["pip said nothing"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])


def has_triton(row: Row) -> bool:
    """Whether the row's Triton runs our kernels under its interpreter."""
    ask = "import triton; print(*triton.__version__.split('.')[:2])"
    command = [str(row.folder / "bin" / "python"), "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return not done.returncode and tuple(map(int, done.stdout.split())) >= LEAST_TRITON


def selected(row: Row, tests: str) -> list[str]:
    """What pytest is to select: the tests asked for, and no kernels where they cannot run."""
    wanted = [f"({tests})"] * bool(tests) + ["not triton"] * (not has_triton(row))
    return ["-k", " and ".join(wanted)] if wanted else []


def run(row: Row, any_build: bool, tests: str) -> Outcome:
    """Run the tests in the environment of a row."""
    reason, start = prepare(row, any_build), time.monotonic()
    if reason is not None:
        return Outcome(None, reason)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TRITON_INTERPRET": "1"}
    command = [str(row.folder / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", "--show-capture=no", *(f"tests/{name}" for name in TESTS)]
    command += selected(row, tests)
    with row.log.open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    return Outcome(not done.returncode, summary(row.log.read_text()), time.monotonic() - start)


def summary(output: str) -> str:
    """What pytest counted, and the first tests that failed."""
    lines = output.strip().splitlines() or ["no output"]
    counts = next((line for line in reversed(lines) if re.search(r" in [\d.]+s", line)), lines[-1])
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([re.sub(r" in [\d.]+s.*", "", counts.strip("= ")), *failed[:5]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make matrix-torch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="rows whose name holds this: pythonX-torchY")
    parser.add_argument("--tests", default="", help="tests whose names hold this, as pytest's -k")
    parser.add_argument(
        "--any-build", action="store_true", help="builds for CUDA where there is none for CPUs"
    )
    options = parser.parse_args(argv)
    rows = [row for row in ROWS if options.only in row.name]
    if not rows:
        parser.error(f"--only {options.only}: no row's name holds this; {ROWS[0].name} is one")
    table = Table("Python", "torch", Column("tests", overflow="fold"), "seconds", title="versions")
    passed, console = True, Console()
    for row in rows:
        console.print(f"{row.name} → {row.log}", highlight=False)
        outcome = run(row, options.any_build, options.tests)
        passed &= outcome.passed is not False
        style = {True: "", False: "red", None: "dim"}[outcome.passed]
        cells = (row.python, row.torch, escape(outcome.text), f"{outcome.seconds:.0f}")
        table.add_row(*cells, style=style)
    console.print(table)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
