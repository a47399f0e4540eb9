"""The examples of whole networks, shortened: they run, and both models of a race stay together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def rows_of(name: str, *arguments: str) -> list[list[float]]:
    """The numbers of each model in the table that an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("  TT-")]
    return [
        [float(number.replace(",", "")) for number in re.findall(r"(?<= )[\d,.]+", line)]
        for line in lines
    ]


@pytest.mark.parametrize(("name", "steps", "races"), [("recurrent.py", 12, 2), ("graph.py", 40, 1)])
def test_both_models_start_equal_and_stay_together(name: str, steps: int, races: int) -> None:
    rows = rows_of(name, "--steps", str(steps))
    assert len(rows) == 2 * races
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        parameters, first, last, _, kept = ours
        assert parameters == theirs[0]
        assert abs(first - theirs[1]) < 1e-4 and abs(last - theirs[2]) < 1e-3
        assert last < first and kept < theirs[4]
