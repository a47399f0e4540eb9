"""Which names users may give, and stand-ins for those that cannot go into source."""

from __future__ import annotations

import keyword
import re

from tncompiler.ir.errors import BadName, ReservedName
from tncompiler.ir.origin import call_site

SEED = "dropout_seed"  # the input that a compiled network fills in by itself
_MAX_LENGTH = 1000  # characters of a name
_MAX_PARTS = 100  # nested modules that torch can walk

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def is_plain_identifier(name: str) -> bool:
    """Whether a name is an ASCII identifier and no Python keyword."""
    return bool(_IDENTIFIER.match(name)) and not keyword.iskeyword(name)


def check_leaf_name(name: object, what: str = "a tensor") -> str:
    """A dotted name of ASCII identifiers, no keywords, no dunders.

    Raises: ReservedName for a name that Python keeps for itself, BadName for any other.
    """
    parts = name.split(".") if isinstance(name, str) else []
    if not parts or not all(_IDENTIFIER.match(part) for part in parts):
        raise BadName(
            f"{_shown(name)} cannot name {what}",
            where=call_site(),
            fix="use ASCII identifiers, with dots between them if you like: 'fc1.G1'",
        )
    for part in parts:
        if keyword.iskeyword(part) or part.startswith("__"):
            raise ReservedName(
                f"{_shown(name)} cannot name {what}: Python reserves {_shown(part)}",
                where=call_site(),
                fix=f"use another name, as {_shown(part.strip('_') + '_')}",
            )
    _check_length(name, len(parts))
    return str(name)


def _check_length(name: object, parts: int = 1) -> None:
    if len(str(name)) > _MAX_LENGTH or parts > _MAX_PARTS:
        raise BadName(
            f"the name {_shown(name)} has {len(str(name))} characters in {parts} parts",
            where=call_site(),
            fix=f"use at most {_MAX_LENGTH} characters in at most {_MAX_PARTS} parts",
        )


def check_index_name(name: object) -> str:
    """An index name: any printable, non-empty text without blanks at its ends. Raises BadName."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise BadName(
            f"{_shown(name)} cannot name an index", where=call_site(), fix="use printable text"
        )
    _check_length(name)
    return name


def _shown(name: object) -> str:
    return ascii(name) if len(ascii(name)) <= 60 else ascii(name)[:57] + "..."
