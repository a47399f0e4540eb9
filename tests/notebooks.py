"""Notebooks run as Jupyter does, cell after cell, without starting a kernel."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPRS = ("_repr_html_", "_repr_svg_", "__repr__")


@dataclass(frozen=True, slots=True)
class Cell:
    """``text`` is what the cell says, ``number`` its place among all cells, from 1."""

    number: int
    is_code: bool
    text: str


def read_cells(path: Path) -> Iterator[Cell]:
    """The cells of a notebook, in order."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        yield Cell(number, cell["cell_type"] == "code", "".join(cell["source"]))


def run_cells(path: Path) -> list[tuple[Cell, str]]:
    """Each cell of code with what it printed and showed. An error names the cell as its file."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [(cell, _run(cell, path, namespace)) for cell in read_cells(path) if cell.is_code]


def _run(cell: Cell, path: Path, namespace: dict[str, Any]) -> str:
    place = f"{path}, cell {cell.number}"
    linecache.cache[place] = len(cell.text), None, cell.text.splitlines(keepends=True), place
    body = ast.parse(cell.text, place).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), place, "exec"), namespace)
        if isinstance(last, ast.Expr):
            print(_shown(eval(compile(ast.Expression(last.value), place, "eval"), namespace)))
    return printed.getvalue()


def _shown(value: Any) -> str:
    """What a notebook would show of a value: the first of its forms that is one."""
    forms = (getattr(value, name)() for name in REPRS if hasattr(value, name))
    return next(form for form in forms if form is not None)
