"""What comes of something, be it values or an error, to compare two that ought to do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tncompiler.ir.errors import TncError

Subject = TypeVar("Subject")


def outcome(situation: Callable[[Subject], Any], subject: Subject) -> Any:
    """What a situation gives, or the kind of its error and the first line."""
    try:
        return situation(subject)
    except (TncError, RuntimeError, FloatingPointError) as error:
        return type(error), str(error).splitlines()[0]
