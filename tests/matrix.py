"""The tests of the Triton backend under other versions: `make matrix`.

Each row is a target directory of its own, filled by pip and put before everything else; it prints
a table and exits with 1 if a row fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/matrix")
TESTS = (
    "test_triton.py",
    "test_triton_compiled.py",
    "test_triton_executed.py",
    "test_triton_plans.py",
    "test_triton_ways.py",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Packages that take the place of those that are installed."""

    name: str
    packages: tuple[str, ...]


ROWS = (
    Row("triton 3.6.0", ("triton==3.6.0", "numpy<2.4")),  # its interpreter fails with NumPy 2.4
    Row("triton 3.7.1", ("triton==3.7.1",)),
    Row("triton 3.9.0", ("triton==3.9.0",)),
)


def run(row: Row) -> tuple[bool, str, float]:
    """Whether all tests pass, pytest's last line, and seconds."""
    folder, start = FOLDER / row.name.replace(" ", "-"), time.monotonic()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not folder.exists():
        wanted = ["--no-deps", "--target", str(folder), *row.packages]
        made = subprocess.run([*pip, *wanted], check=False)
        if made.returncode:
            return False, "pip could not install it", time.monotonic() - start
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve()), "TRITON_INTERPRET": "1"}
    tests = [f"tests/{name}" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= "))
    return not done.returncode, "\n".join([last, *failed[:5]]), time.monotonic() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args(argv)
    table = Table("versions", "tests", "seconds", title="versions")
    passed = True
    for row in ROWS:
        if options.only in row.name:
            fine, text, seconds = run(row)
            passed &= fine
            table.add_row(row.name, text, f"{seconds:.0f}", style="" if fine else "red")
    Console().print(table)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
