"""Arguments and options that several commands have, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tncompiler.ir.errors import ArgumentError

NetworkArgument = Annotated[
    str, typer.Argument(metavar="NETWORK", help='"ij,jk->ik", "file.py:name" or "saved:layer".')
]
SizesOption = Annotated[
    str, typer.Option("--sizes", "-s", metavar="i=4,j=8", help="Sizes by name of index.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")
]
PartOption = Annotated[str, typer.Option(help="forward, backward or step.")]


def read_sizes(text: str) -> dict[str, int]:
    """Sizes as "i=4,j=8". Raises: ArgumentError for anything else."""
    sizes = {}
    for item in filter(None, text.split(",")):
        name, sign, number = item.partition("=")
        if not sign or not number.strip().isdecimal() or not number.isascii():
            raise ArgumentError(f"{item!r:.60} is no size", fix="write them as i=4,j=8")
        sizes[name.strip()] = int(number)
    return sizes


def put(as_json: bool, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print data as JSON, or the text for people."""
    typer.echo(json.dumps(data(), indent=1) if as_json else text())
