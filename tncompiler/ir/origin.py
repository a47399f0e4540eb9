"""Where in the user's code an expression was written."""

from __future__ import annotations

import os
import sys


def call_site() -> str:
    """File name and line of the nearest caller outside tncompiler, as "train.py:31"."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith("tncompiler."):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
