"""Steps at positions that integers tell: Gather reads there, Scatter adds there, or compares.

How the axes of a table, of the ids and of what is gathered go together is said here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows of a table, the first operand, at the positions that ids, the second, hold.

    ``axis`` of the table is replaced by the axes of ids that are new, in their order. ``shared``
    has, for each axis of ids, the axis of the table that it runs along together with; None if new.
    """

    axis: int
    shared: tuple[int | None, ...]

    def text(self) -> str:
        return f"gather[axis {self.axis}{_shared_text(self.shared)}]"


@dataclass(frozen=True, slots=True)
class Scatter:
    """Sums of what a Gather of the same fields would read from each position; its adjoint.

    The first operand is laid out as what is gathered, the second holds the positions; the step's
    value is laid out as the table. ``function``: "sum", or "max" for the largest instead; a
    position at which nothing comes holds 0 in either case.
    """

    axis: int
    shared: tuple[int | None, ...]
    function: str = "sum"

    def text(self) -> str:
        name = "scatter" if self.function == "sum" else f"scatter_{self.function}"
        return f"{name}[axis {self.axis}{_shared_text(self.shared)}]"


def _shared_text(shared: Sequence[int | None]) -> str:
    pairs = [f"{k}={axis}" for k, axis in enumerate(shared) if axis is not None]
    return f", shared {' '.join(pairs)}" if pairs else ""


def new_axes(op: Gather | Scatter) -> tuple[int, ...]:
    """The axes of ids that the table does not have."""
    return tuple(k for k, axis in enumerate(op.shared) if axis is None)


def gathered(op: Gather | Scatter, table: Sequence[Item], ids: Sequence[Item]) -> tuple[Item, ...]:
    """What belongs to the axes of the result of a Gather, from that of the table and the ids."""
    read = [ids[k] for k in new_axes(op)]
    return (*table[: op.axis], *read, *table[op.axis + 1 :])


def table_places(op: Gather | Scatter, rank: int) -> tuple[int | None, ...]:
    """For each axis of the table, the axis of what is gathered; None for the one that is read."""
    more = len(new_axes(op)) - 1
    return tuple(None if k == op.axis else k if k < op.axis else k + more for k in range(rank))


def ids_places(op: Gather | Scatter) -> tuple[int, ...]:
    """For each axis of ids, the axis of what is gathered."""
    new = new_axes(op)
    more = len(new) - 1
    return tuple(
        op.axis + new.index(k) if axis is None else axis if axis < op.axis else axis + more
        for k, axis in enumerate(op.shared)
    )
