"""The command `tnc`: look at networks, plan, draw, time, tensorize, inspect.

Exit status: 0 on success, 2 on bad use or bad input, with one paragraph on stderr; 130 when it is
interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from tncompiler.ir.errors import TncError

__all__ = ["main"]

BAD_USE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status. Without arguments the help is bad use."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import typer
    except ImportError:
        return _fail("the command line needs typer, which is not installed. Fix: pip install typer")
    from tncompiler.cli.app import app

    try:
        code = typer.main.get_command(app).main(
            given or ["--help"], prog_name="tnc", standalone_mode=False
        )
    except _bad_usage() as error:
        return _fail(f"{error.format_message().rstrip('.')}. See tnc --help.")
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TncError as error:
        return _fail(paragraph(error))
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror}: {error.filename}. Fix: name a file that can be written.")
    return BAD_USE if not given else code if isinstance(code, int) else 0


def _bad_usage() -> type[Any]:
    """The class of all complaints about a command line, which typer's versions keep elsewhere."""
    import typer

    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def paragraph(error: TncError) -> str:
    """What is wrong, where, and how to mend it, as one paragraph."""
    parts = [f"{type(error).__name__}: {error.what}."]
    parts += [f"In {error.where}."] if error.where else []
    parts += [f"Fix: {error.fix}."] if error.fix else []
    return " ".join(" ".join(parts).split())


def _fail(text: str) -> int:
    print(f"tnc: {text}", file=sys.stderr)
    return BAD_USE
