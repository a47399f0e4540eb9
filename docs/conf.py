"""Sphinx: `make docs` builds docs/_build/html. Warnings are errors, notebooks are executed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

project = "tncompiler"
copyright = "the authors of tncompiler"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "tncompiler"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
exclude_patterns = ["_build", "*.template.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature in the source says it, and shorter
suppress_warnings = ["config.cache"]


def _as_rest(lines: list[str]) -> list[str]:
    """A docstring of ours as reST: code in backquotes, indented text as it stands, nothing else."""
    made: list[str] = []
    is_code = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not is_code:
            made += ["", "::", ""]
        if is_code and not indented and line.strip():
            made.append("")
        is_code = indented or (is_code and not line.strip())
        made.append(line if is_code else _escaped(line))
    return made


def _escaped(line: str) -> str:
    """Code spans as literals; what reST would read as markup outside them as plain text."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    return "".join(
        f"``{part.strip('`')}``" if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part)
        for part in parts
    )


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = _as_rest(lines)


def _link(app: Any, name: str, source: list[str]) -> None:
    """Pages link to notebooks where they lie in the repository."""
    source[0] = source[0].replace("](../examples/notebooks/", "](notebooks/")


def copy_notebooks(target: Path) -> None:
    """Sphinx reads nothing outside docs/, and does not follow links to what it reads."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(HERE.parent / "examples" / "notebooks", target)


def setup(app: Any) -> None:
    copy_notebooks(HERE / "notebooks")
    app.connect("autodoc-process-docstring", _process)
    app.connect("source-read", _link)
