"""Identifiers for generated source. No user text reaches source unless it is one already."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from tncompiler.ir.names import is_plain_identifier

_RESERVED = frozenset(dir(builtins)) | {"np", "torch", "math", "erf", "expit", "self"}


class Names:
    """Hands out one identifier per key; a name that will not do gets a numbered stand-in."""

    def __init__(self) -> None:
        self._given: dict[object, str] = {}
        self._taken: set[str] = set(_RESERVED)

    def __call__(self, key: object, wanted: str, stand_in: str) -> str:
        if key not in self._given:
            self._given[key] = self._fresh(wanted.replace(".", "_"), stand_in)
            self._taken.add(self._given[key])
        return self._given[key]

    def reserve(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def _fresh(self, wanted: str, stand_in: str) -> str:
        if is_plain_identifier(wanted) and not wanted.startswith("__"):
            if wanted not in self._taken:
                return wanted
            stand_in = f"{wanted}_"
        number = 0
        while f"{stand_in}{number}" in self._taken:
            number += 1
        return f"{stand_in}{number}"


def comment_name(name: str, number: int) -> str:
    """An index name for a comment: itself if it is an identifier, else a stand-in."""
    return name if is_plain_identifier(name) else f"i{number}"
