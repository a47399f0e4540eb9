"""One value of a stack: what equal steps that were carried out as one are taken apart by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """Position `position` of the first axis, which the result does not have; a view."""

    position: int

    def text(self) -> str:
        return f"member[{self.position}]"
