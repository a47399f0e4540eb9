"""The debug ladder: TNC_DEBUG=1 plan, 2 passes, 3 program, 4 source; TNC_DUMP=dir writes files."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from tncompiler.ir.passes import Watcher
from tncompiler.ir.program import Program

logger = logging.getLogger("tncompiler")


def level() -> int:
    """The value of TNC_DEBUG; 0 if it is unset or no number."""
    text = os.environ.get("TNC_DEBUG", "0")
    return int(text) if text.isdigit() else 0


def show(least: int, title: str, write: Callable[[], str]) -> None:
    """Print at debug level `least` or more, and write to TNC_DUMP if it is set.

    ``write`` makes the text, which takes its time where programs are large, if anyone is looking.
    """
    folder = os.environ.get("TNC_DUMP")
    if level() < least and not folder:
        return
    text = write()
    if level() >= least:
        print(f"--- {title}\n{text}")
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        number = len(list(path.iterdir()))
        (path / f"{number:04d}-{title.replace(' ', '-')}.txt").write_text(text)


def watcher() -> Watcher | None:
    """A watcher that shows what each pass changed, if anyone is looking."""
    if level() < 2 and not os.environ.get("TNC_DUMP"):
        return None
    return _watch


def _watch(name: str, before: Program, after: Program) -> None:
    lines = difflib.unified_diff(
        before.to_text().splitlines(), after.to_text().splitlines(), "before", "after", lineterm=""
    )
    show(2, f"pass {name}", lambda: "\n".join(lines))
