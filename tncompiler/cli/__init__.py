"""The command `tnc`: look at networks, plan, draw, time, tensorize, inspect.

Exit status: 0 on success, 2 on bad use or bad input, with one paragraph on stderr; 130 when it is
interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tncompiler.ir.errors import TncError

__all__ = ["main"]

BAD_USE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    try:
        import click
        import typer
    except ImportError:
        return _fail("the command line needs typer, which is not installed. Fix: pip install typer")
    from tncompiler.cli.app import app

    command = typer.main.get_command(app)
    try:
        code = command.main(
            None if arguments is None else list(arguments), prog_name="tnc", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return BAD_USE
    except click.ClickException as error:
        return _fail(f"{error.format_message()} See tnc --help.")
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TncError as error:
        return _fail(paragraph(error))
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def paragraph(error: TncError) -> str:
    """What is wrong, where, and how to mend it, as one paragraph."""
    parts = [f"{type(error).__name__}: {error.what}."]
    parts += [f"In {error.where}."] if error.where else []
    parts += [f"Fix: {error.fix}."] if error.fix else []
    return " ".join(" ".join(parts).split())


def _fail(text: str) -> int:
    print(f"tnc: {text}", file=sys.stderr)
    return BAD_USE
