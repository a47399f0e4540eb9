"""Read and add at integer positions, which are checked; generated torch code calls these."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tncompiler.backends.positions import Rows, Shared, aligned_shape, out_of_range, rows_of

_CHUNK = 2**16  # values that are widened at once, unless there are more rows to add to
_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def take_at(table: Tensor, ids: Tensor, axis: int, shared: Shared, index: str) -> Tensor:
    """`table` with `axis` read at the positions `ids`. Raises PositionError."""
    _check(ids, table.shape[axis], index)
    if all(place is None for place in shared):
        read = table.index_select(axis, ids.reshape(-1))
        return read.reshape((*table.shape[:axis], *ids.shape, *table.shape[axis + 1 :]))
    order, aligned, shape = aligned_shape(table.shape, ids.shape, axis, shared)
    at = ids.permute(order).reshape(aligned)
    return torch.take_along_dim(table, at, axis).reshape(shape)


def add_at(values: Tensor, ids: Tensor, size: int, axis: int, shared: Shared, index: str) -> Tensor:
    """Sums of `values` at the positions `ids` of an index of `size`. Raises PositionError.

    In the order of the ids, also on a GPU, so that the same call gives the same bits.
    """
    _check(ids, size, index)
    return _by_rows(_sum_rows, values, ids, size, rows_of(values.shape, ids.shape, axis, shared))


def max_at(values: Tensor, ids: Tensor, size: int, axis: int, shared: Shared, index: str) -> Tensor:
    """The largest of `values` at each position of an index of `size`; 0 where there is none.

    Raises: PositionError.
    """
    _check(ids, size, index)
    return _by_rows(_max_rows, values, ids, size, rows_of(values.shape, ids.shape, axis, shared))


def _by_rows(
    join: Callable[[Tensor, Tensor, int], Tensor],
    values: Tensor,
    ids: Tensor,
    size: int,
    rows: Rows,
) -> Tensor:
    """Values joined by position, as rows of a matrix."""
    at = ids.permute(rows.ids_order)
    groups = math.prod(rows.counts)
    if rows.counts:
        first = torch.arange(groups, device=ids.device)
        at = at + size * first.reshape(*rows.counts, *[1] * (at.ndim - len(rows.counts)))
    flat = values.permute(rows.values_order).reshape(at.numel(), math.prod(rows.rest))
    joined = join(flat, at.reshape(-1), groups * size)
    return joined.reshape((*rows.counts, size, *rows.rest)).permute(rows.back)


def _sum_rows(rows: Tensor, at: Tensor, count: int) -> Tensor:
    """Row n of the result is the sum of all rows at n; long sums are done in double precision."""
    wide = _WIDE.get(rows.dtype, rows.dtype)
    total = rows.new_zeros((count, rows.shape[1]), dtype=wide)
    if rows.is_cuda:  # sorts the positions, where index_add would add as threads happen to come
        return total.index_put((at,), rows.to(wide), accumulate=True).to(rows.dtype)
    if torch.compiler.is_compiling():  # blocks would fix the number of ids
        return total.index_add(0, at, rows.to(wide)).to(rows.dtype)
    step = max(_CHUNK, count)
    for start in range(0, len(at), step):
        part = slice(start, start + step)
        total = total.index_add(0, at[part], rows[part].to(wide))
    return total.to(rows.dtype)


def _max_rows(rows: Tensor, at: Tensor, count: int) -> Tensor:
    """Row n of the result has the largest entries of all rows at n, or zeros."""
    where = at[:, None].expand_as(rows)
    empty = rows.new_zeros((count, rows.shape[1]))
    return empty.scatter_reduce(0, where, rows, "amax", include_self=False)


def _check(ids: Tensor, size: int, index: str) -> None:
    """Where ids cannot be looked at without waiting, torch asserts when they are there."""
    if torch.compiler.is_compiling() or ids.is_cuda:
        known = ((ids >= 0) & (ids < size)).all()
        torch._assert_async(known, f"an id is no position of index {index!r}")
    elif ids.numel() and _can_look(ids):
        low, high = map(int, torch.aminmax(ids))
        if low < 0 or high >= size:
            raise out_of_range(low if low < 0 else high, size, index)


def _can_look(ids: Tensor) -> bool:
    """Whether ids are plain numbers: not traced, batched by vmap, or without data."""
    traced = torch._C._functorch.peek_interpreter_stack() is not None
    return type(ids) is Tensor and not ids.is_meta and not traced
