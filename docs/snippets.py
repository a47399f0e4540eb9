"""The Python of a page of documentation, run from top to bottom in one namespace.

A fence of ```python is a snippet; so is a comment <!-- run: … -->, which readers do not see. In the
pages that docs/build_inside.py writes, what a snippet prints stands in a fence of text after it.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SNIPPET = re.compile(r"^```python\n(.*?)^```$|<!-- run: (.*?) -->", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Snippet:
    """``code``, the line of the page on which it begins, and where in the text it ends."""

    code: str
    line: int
    end: int


def snippets_of(text: str) -> Iterator[Snippet]:
    """The snippets of a page, in order."""
    for match in _SNIPPET.finditer(text):
        code = match[1] if match[1] is not None else match[2]
        start = match.start(1) if match[1] is not None else match.start(2)
        yield Snippet(code, text.count("\n", 0, start) + 1, match.end())


def run_page(path: Path) -> list[tuple[Snippet, str]]:
    """Each snippet with what it printed. An error is the snippet's, with the line of the page."""
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    made = []
    for snippet in snippets_of(text):
        code = compile("\n" * (snippet.line - 1) + snippet.code, str(path), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        made.append((snippet, printed.getvalue()))
    return made
