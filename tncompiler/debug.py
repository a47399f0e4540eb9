"""The debug ladder: TNC_DEBUG=1 plan, 2 passes, 3 program, 4 source; TNC_DUMP=dir writes files.

Whatever the variables say, the same texts go to the loggers tncompiler.plan, .passes, .program and
.source at debug level, for programs that log.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from tncompiler.ir.passes import Watcher
from tncompiler.ir.program import Program

_LOGGERS = {
    rung: logging.getLogger(f"tncompiler.{name}")
    for rung, name in enumerate(("plan", "passes", "program", "source"), start=1)
}


def level() -> int:
    """The value of TNC_DEBUG; 0 if it is unset or no number."""
    text = os.environ.get("TNC_DEBUG", "0")
    return int(text) if text.isdigit() else 0


def show(least: int, title: str, write: Callable[[], str]) -> None:
    """Print at debug level `least` or more, log, and write to TNC_DUMP if it is set.

    ``write`` makes the text, which takes its time where programs are large, if anyone is looking.
    """
    folder = os.environ.get("TNC_DUMP")
    logger = _LOGGERS[least]
    logs = logger.isEnabledFor(logging.DEBUG)
    if level() < least and not folder and not logs:
        return
    text = write()
    if logs:
        logger.debug("%s\n%s", title, text)
    if level() >= least:
        print(f"--- {title}\n{text}")
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        number = len(list(path.iterdir()))
        (path / f"{number:04d}-{title.replace(' ', '-')}.txt").write_text(text)


def watcher() -> Watcher | None:
    """A watcher that shows what each pass changed, if anyone is looking."""
    logs = _LOGGERS[2].isEnabledFor(logging.DEBUG)
    if level() < 2 and not os.environ.get("TNC_DUMP") and not logs:
        return None
    return _watch


def _watch(name: str, before: Program, after: Program) -> None:
    lines = difflib.unified_diff(
        before.to_text().splitlines(), after.to_text().splitlines(), "before", "after", lineterm=""
    )
    show(2, f"pass {name}", lambda: "\n".join(lines))
