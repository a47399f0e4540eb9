"""The notebooks of examples/: clean, in the documentation, and every cell runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.conf import copy_notebooks
from tests.conftest import ROOT
from tests.notebooks import read_cells, run_cells

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_some() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"layer", "peps", "compress", "plans"}


@BY_NAME
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "peps":
        pytest.importorskip("quimb")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    shown = run_cells(path)
    assert shown[-1][1].strip()  # a notebook ends with something to see


def notebook(folder: Path, *cells: str) -> Path:
    path = folder / "made.ipynb"
    data = {"cells": [{"cell_type": "code", "source": cell} for cell in cells]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_cells_share_names_and_show_their_last_value(tmp_path: Path) -> None:
    path = notebook(tmp_path, "x = 1", "print(x)\nx + 1")
    assert [shown for _, shown in run_cells(path)] == ["", "1\n2\n"]


def test_a_cell_that_fails_fails_and_is_named(tmp_path: Path) -> None:
    path = notebook(tmp_path, "x = 1", "y = 2\nx / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells(path)
    assert str(caught.traceback[-1].path).endswith("cell 2")


@BY_NAME
def test_nothing_is_left_of_a_run(path: Path) -> None:
    """Outputs would be stale, and differ from machine to machine."""
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert data["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in data["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in data["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@BY_NAME
def test_the_documentation_shows_it(path: Path, tmp_path: Path) -> None:
    copy_notebooks(tmp_path / "notebooks")
    assert (tmp_path / "notebooks" / path.name).read_bytes() == path.read_bytes()
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert f"notebooks/{path.stem}" in contents


@BY_NAME
def test_links_lead_somewhere(path: Path) -> None:
    text = "\n".join(cell.text for cell in read_cells(path) if not cell.is_code)
    assert text.startswith("# ")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []
