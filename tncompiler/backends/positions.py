"""What reading and adding at positions has in common, whatever library does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tncompiler.ir.errors import PositionError
from tncompiler.ir.gather import Scatter, gathered, ids_places, new_axes, table_places

Shared = tuple[int | None, ...]


def out_of_range(position: int, size: int, index: str) -> PositionError:
    """The error for a position that an index does not have."""
    return PositionError(
        f"the id {position} is no position of index {index!r} of size {size}",
        where=f"the ids that number {index!r}",
        fix=f"ids go from 0 to {size - 1}" if size else "an index of size 0 has no positions",
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """How sums at positions become sums of rows of a matrix.

    ``values_order``: the axes of values in the order (shared, new, rest); ``ids_order``: those of
    ids, shared ones first. ``counts`` are the sizes of the shared axes, ``rest`` those of a row,
    and ``back`` puts the axes (shared, positions, rest) into the order of the table.
    """

    values_order: tuple[int, ...]
    ids_order: tuple[int, ...]
    counts: tuple[int, ...]
    rest: tuple[int, ...]
    back: tuple[int, ...]


def rows_of(values: Sequence[int], ids: Sequence[int], axis: int, shared: Shared) -> Rows:
    """The layout for values and ids of these shapes."""
    op = Scatter(axis, shared)
    rank = len(values) - len(new_axes(op)) + 1
    kept = [k for k, place in enumerate(shared) if place is not None]
    tables = [shared[k] for k in kept]
    others = [k for k in range(rank) if k != axis and k not in tables]
    places, ids_at = table_places(op, rank), ids_places(op)
    ids_order = (*kept, *new_axes(op))
    rest = [places[k] for k in others]
    order = (*(ids_at[k] for k in ids_order), *(p for p in rest if p is not None))
    made = [*tables, axis, *others]
    return Rows(
        order,
        ids_order,
        tuple(ids[k] for k in kept),
        tuple(values[p] for p in rest if p is not None),
        tuple(made.index(k) for k in range(rank)),
    )


def aligned_shape(
    table: Sequence[int], ids: Sequence[int], axis: int, shared: Shared
) -> tuple[tuple[int, ...], list[int], tuple[int, ...]]:
    """For reading along shared axes: the order of ids' axes, ids' shape with the table's rank (1
    along axes that they do not share), and the shape of what is read."""
    op = Scatter(axis, shared)
    kept = sorted((place, k) for k, place in enumerate(shared) if place is not None)
    before = [k for place, k in kept if place < axis]
    after = [k for place, k in kept if place > axis]
    count = 1
    for k in new_axes(op):
        count *= ids[k]
    shape = [1] * len(table)
    shape[axis] = count
    for place, k in kept:
        shape[place] = ids[k]
    return (*before, *new_axes(op), *after), shape, gathered(op, tuple(table), tuple(ids))
