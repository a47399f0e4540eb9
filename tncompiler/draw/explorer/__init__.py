"""The plan explorer: one self-contained page of a compiled network.

The page is page/page.html with its style and scripts put in; the data is compressed JSON in base64,
so no name of a user's reaches the markup. Its content security policy allows nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import zlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from tncompiler.draw.explorer.data import page_data
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.origin import call_site

MOST_BYTES = 2_000_000
_SCRIPTS = ("formulas.js", "costs.js", "pictures.js", "panels.js", "main.js")

__all__ = ["MOST_BYTES", "explorer_page", "page_data", "write_page"]


def write_page(
    network: Inspection, path: str | os.PathLike[str], sizes: Mapping[Any, Any] | None = None
) -> Path:
    """Write the page of a compiled network. Raises: ArgumentError if it would be too large."""
    page = explorer_page(page_data(network, sizes))
    if len(page.encode()) > MOST_BYTES:
        raise ArgumentError(
            f"the page would take {len(page.encode()):,} bytes, more than {MOST_BYTES:,}",
            where=call_site(),
            fix="write the page of a part of the network",
        )
    target = Path(path)
    target.write_text(page, encoding="utf-8")
    return target


def explorer_page(data: Mapping[str, Any]) -> str:
    """The whole page as text."""
    style = _file("page.css")
    script = "\n".join(_file(name) for name in _SCRIPTS)
    packed = zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9)
    return Template(_file("page.html")).substitute(
        title=html.escape(data["title"]),
        style=style,
        style_hash=_digest(style),
        script=script,
        script_hash=_digest(script),
        data=base64.b64encode(packed).decode(),
    )


def _file(name: str) -> str:
    return files(__name__).joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names what it allows."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
