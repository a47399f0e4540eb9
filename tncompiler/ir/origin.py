"""Where in the user's code an expression was written."""

from __future__ import annotations

import os
import sys

_PASSED_OVER = ("tncompiler.", "typer.", "click.")  # these two call our commands
_COMMAND_LINE = "tncompiler.cli"


def call_site() -> str:
    """File name and line of the nearest caller outside tncompiler, as "train.py:31"."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == _COMMAND_LINE:
            return "the command line"
        if not name.startswith(_PASSED_OVER):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
