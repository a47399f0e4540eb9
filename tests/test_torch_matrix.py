"""The script behind `make matrix-torch`: what it says of a row, and of rows that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import torch_matrix
from tests.torch_matrix import ROWS, Outcome, Row, main, selected, summary, why_not

OUTPUT = """..F
=========================== short test summary info ============================
FAILED tests/test_operators.py::test_an_export_holds_aten[numpy] - assert not
1 failed, 2 passed, 7 deselected in 61.20s (0:01:01)
/usr/lib/python3.12/multiprocessing/resource_tracker.py: a last word
"""


def test_the_summary_counts_and_names_what_failed() -> None:
    counts, failed = summary(OUTPUT).splitlines()
    assert counts == "1 failed, 2 passed, 7 deselected"
    assert failed.startswith("FAILED tests/test_operators.py::test_an_export_holds_aten[numpy]")
    assert summary("") == "no output"


def test_why_a_row_is_left_out() -> None:
    assert why_not("ERROR: No matching distribution found for torch==2.6.0+cpu") == (
        "there is no such build here"
    )
    assert why_not("WARNING: x\nERROR: Cannot install it\nERROR: see there").endswith("install it")
    assert why_not("") == "pip said nothing"


@pytest.mark.parametrize(("triton", "wanted"), [(True, []), (False, ["-k", "not triton"])])
def test_kernels_run_only_where_they_can(
    triton: bool, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_matrix, "has_triton", lambda row: triton)
    assert selected(ROWS[0], "") == wanted
    assert selected(ROWS[0], "a or b")[1].startswith("(a or b)")


def test_the_table_shows_names_of_tests_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters are in brackets, which rich takes for styles."""

    def run(row: Row, any_build: bool, tests: str) -> Outcome:
        return Outcome(False, "FAILED a[numpy]", 1.0)

    monkeypatch.setattr(torch_matrix, "run", run)
    monkeypatch.setattr(torch_matrix, "FOLDER", Path("build"))
    assert main(["--only", ROWS[0].name]) == 1
    assert "a[numpy]" in capsys.readouterr().out


def test_a_row_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "torch1.0"])
    assert "no row's name holds this" in capsys.readouterr().err
