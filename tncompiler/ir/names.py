"""Which names users may give, and stand-ins for those that cannot go into source."""

from __future__ import annotations

import keyword
import re

from tncompiler.ir.errors import BadName

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def is_plain_identifier(name: str) -> bool:
    """Whether a name is an ASCII identifier and no Python keyword."""
    return bool(_IDENTIFIER.match(name)) and not keyword.iskeyword(name)


def check_leaf_name(name: object) -> str:
    """A leaf name: dotted ASCII identifiers, no keywords, no dunders. Raises BadName."""
    parts = name.split(".") if isinstance(name, str) else []
    if not parts or not all(is_plain_identifier(p) and not p.startswith("__") for p in parts):
        raise BadName(
            f"{_shown(name)} cannot name a tensor",
            fix="use ASCII identifiers, with dots between them if you like: 'fc1.G1'",
        )
    return str(name)


def check_index_name(name: object) -> str:
    """An index name: any printable, non-empty text without blanks at its ends. Raises BadName."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise BadName(f"{_shown(name)} cannot name an index", fix="use printable text")
    return name


def _shown(name: object) -> str:
    return ascii(name) if len(ascii(name)) <= 60 else ascii(name)[:57] + "..."
