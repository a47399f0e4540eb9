"""The tests of torch's transforms under other versions of torch and Python: `make matrix-torch`.

Each row is a virtual environment of its own, with torch's build for CPUs ("2.6.0+cpu"; others bring
gigabytes of CUDA along). A version or a Python that is not to be had is named and left out;
`PIP_EXTRA_INDEX_URL` may name an index of CPU builds. Prints a table; exits with 1 if a row fails.
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
from rich.table import Table

FOLDER = Path("build/matrix-torch")
PYTHONS = ("3.11", "3.12")
VERSIONS = ("2.6.0", "2.8.0", "2.10.0", "2.13.0", "2.15.0")
TESTS = ("test_torch_support.py", "test_torch_compiled.py", "test_operators.py", "test_module.py")
NEEDED = ("pytest", "filelock", "numpy", "scipy", "networkx", "sympy", "cotengra", "cotengrust")
NEEDED += ("threadpoolctl", "tqdm", "rich", "platformdirs", "safetensors", "hypothesis")


@dataclass(frozen=True, slots=True)
class Row:
    """A version of Python and one of torch."""

    python: str
    torch: str

    @property
    def folder(self) -> Path:
        return FOLDER / f"python{self.python}-torch{self.torch}"


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


def prepare(row: Row) -> str | None:
    """Make the environment of a row; why it cannot be made, if it can't."""
    python = interpreter(row.python)
    if python is None:
        return f"there is no Python {row.python} here"
    if (row.folder / "ready").exists():
        return None
    subprocess.run([python, "-m", "venv", str(row.folder)], check=True)
    done = pip(row.folder, "install", "--quiet", f"torch=={row.torch}+cpu", *NEEDED)
    if "No matching distribution found for torch" in done.stderr:
        return "there is no CPU build here"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    (row.folder / "ready").touch()
    return None


def run(row: Row) -> Outcome:
    """Run the tests in the environment of a row."""
    reason, start = prepare(row), time.monotonic()
    if reason is not None:
        return Outcome(None, reason)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TRITON_INTERPRET": "1"}
    command = [str(row.folder / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", *(f"tests/{name}" for name in TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    text = "\n".join([re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")), *failed[:5]])
    return Outcome(not done.returncode, text, time.monotonic() - start)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make matrix-torch", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose folder's name holds this")
    options = parser.parse_args(argv)
    table = Table("Python", "torch", "tests", "seconds", title="versions")
    passed = True
    for row in ROWS:
        if options.only in row.folder.name:
            outcome = run(row)
            passed &= outcome.passed is not False
            style = {True: "", False: "red", None: "dim"}[outcome.passed]
            table.add_row(
                row.python, row.torch, outcome.text, f"{outcome.seconds:.0f}", style=style
            )
    Console().print(table)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
