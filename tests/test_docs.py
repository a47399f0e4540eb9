"""Every snippet of the documentation runs; what pages say of the code is what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.snippets import run_page, snippets_of
from examples import quickstart
from tests.conftest import ROOT

# pages whose Python is generated source, or minutes of training that tests do elsewhere in short
SHOWN = {"performance.md", "inside.md", "healing.md"}
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if "```python" in path.read_text(encoding="utf-8")
    and path.name not in SHOWN
    and not path.name.endswith(".template.md")
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert run_page(path)


def test_snippets_are_found_and_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- run: x = 1 -->\n\n```python\nprint(x)\nx / 0\n```\n")
    hidden, shown = snippets_of(page.read_text())
    assert (hidden.code, hidden.line, shown.line) == ("x = 1", 2, 5)
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno == 5  # counted from 0


def test_what_a_snippet_prints_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```python\ny = 2\n```\n")
    assert [printed for _, printed in run_page(page)] == ["1\n", ""]


def test_inside_shows_what_is_printed_now(tmp_path: Path) -> None:
    """docs/inside.md is what docs/build_inside.py writes: run `make pages` if it is not."""
    code = "from docs.build_inside import page; print(page(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")


def test_the_quickstart_trains_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.train(20)[-1] < quickstart.train(1)[0]
    quickstart.main()
    assert "explorer.html in a browser" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / quickstart.OUT).iterdir()}
    assert written == {"explorer.html", "memory.svg", "network.svg", "roofline.svg", "tree.svg"}


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    missing = {page for page in pages if page not in contents and not page.endswith(".template")}
    assert missing == set()
