"""Read and add at integer positions, which are checked; generated NumPy code calls these."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tncompiler.backends.positions import Rows, Shared, aligned_shape, out_of_range, rows_of

_CHUNK = 2**16  # values that are widened at once, unless there are more rows to add to
_WIDE = {np.dtype("float32"): np.dtype("float64"), np.dtype("complex64"): np.dtype("complex128")}


def take_at(
    table: np.ndarray, ids: np.ndarray, axis: int, shared: Shared, index: str
) -> np.ndarray:
    """`table` with `axis` read at the positions `ids`. Raises PositionError."""
    _check(ids, table.shape[axis], index)
    if all(place is None for place in shared):
        return np.take(table, ids, axis)
    order, aligned, shape = aligned_shape(table.shape, ids.shape, axis, shared)
    at = ids.transpose(order).reshape(aligned)
    return np.take_along_axis(table, at, axis).reshape(shape)


def add_at(
    values: np.ndarray, ids: np.ndarray, size: int, axis: int, shared: Shared, index: str
) -> np.ndarray:
    """Sums of `values` at the positions `ids` of an index of `size`. Raises PositionError.

    In the order of the ids, so that the same call gives the same bits.
    """
    _check(ids, size, index)
    return _by_rows(_sum_rows, values, ids, size, rows_of(values.shape, ids.shape, axis, shared))


def max_at(
    values: np.ndarray, ids: np.ndarray, size: int, axis: int, shared: Shared, index: str
) -> np.ndarray:
    """The largest of `values` at each position of an index of `size`; 0 where there is none.

    Raises: PositionError.
    """
    _check(ids, size, index)
    return _by_rows(_max_rows, values, ids, size, rows_of(values.shape, ids.shape, axis, shared))


def _by_rows(
    join: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    values: np.ndarray,
    ids: np.ndarray,
    size: int,
    rows: Rows,
) -> np.ndarray:
    """Values joined by position, as rows of a matrix."""
    at = ids.transpose(rows.ids_order)
    groups = math.prod(rows.counts)
    if rows.counts:
        first = np.arange(groups).reshape(*rows.counts, *[1] * (at.ndim - len(rows.counts)))
        at = at + size * first
    flat = values.transpose(rows.values_order).reshape(at.size, math.prod(rows.rest))
    joined = join(flat, at.reshape(-1), groups * size)
    return joined.reshape((*rows.counts, size, *rows.rest)).transpose(rows.back)


def _sum_rows(rows: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Row n of the result is the sum of all rows at n; long sums are done in double precision."""
    from scipy.sparse import csc_array  # only programs that add so pay for importing scipy

    wide = _WIDE.get(rows.dtype, rows.dtype)
    total = np.zeros((count, rows.shape[1]), wide)
    step = max(_CHUNK, count)
    for start in range(0, len(at), step):
        part = slice(start, start + step)
        length = len(at[part])
        ones = np.ones(length, wide)
        chosen = csc_array((ones, at[part], np.arange(length + 1)), shape=(count, length))
        total += chosen @ rows[part].astype(wide)
    return total.astype(rows.dtype)


def _max_rows(rows: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Row n of the result has the largest entries of all rows at n, or zeros."""
    made = np.zeros((count, rows.shape[1]), rows.dtype)
    if len(at):
        order = np.argsort(at, kind="stable")
        used, starts = np.unique(at[order], return_index=True)
        made[used] = np.maximum.reduceat(rows[order], starts)
    return made


def _check(ids: np.ndarray, size: int, index: str) -> None:
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise out_of_range(low if low < 0 else high, size, index)
