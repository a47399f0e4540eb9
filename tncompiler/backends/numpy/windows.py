"""Convolutions that generated NumPy code calls: tap by tap, on strided parts of the data.

Where nothing else is said, data is (m, g, c, positions…), a weight (g, n, c, taps…), a result
(m, g, n, positions…), and the sum is over c. ``last``: data and result (or, of a kernel's gradient,
both operands) have channels after the positions in memory. Beside data and result, memory is taken
for one part of the data and one of the result at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tncompiler.backends.numpy.runtime import long_matmul
from tncompiler.ir.windows import reading_windows

Move = tuple[int, int, int]  # the step from one position to the next, from tap to tap, the padding


def gather_windows(
    data: np.ndarray,
    weight: np.ndarray,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> np.ndarray:
    """result[o] = sum over taps t of data[o·step + t·reach - before] · weight[t]."""
    result = _zeros(data, weight, positions, last)
    times = _times_last if last else _times
    for tap, far, near in _parts(weight.shape[3:], positions, data.shape[3:], moves):
        result[..., *near] += times(data[..., *far], weight[..., *tap])
    return result


def scatter_windows(
    data: np.ndarray,
    weight: np.ndarray,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> np.ndarray:
    """result[d·step + t·reach - before] += data[d] · weight[t], for all d and taps t."""
    result = _zeros(data, weight, positions, last)
    times = _times_last if last else _times
    for tap, far, near in _parts(weight.shape[3:], data.shape[3:], positions, moves):
        result[..., *far] += times(data[..., *near], weight[..., *tap])
    return result


def kernel_windows(
    data: np.ndarray,
    weight: np.ndarray,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> np.ndarray:
    """What `gather_windows` gives, where taps are many and positions few: a kernel's gradient.

    Data is (c, g, m, …), the weight (c, g, n, taps…), the result (g, n, m, positions…).
    """
    _, groups, columns = weight.shape[:3]
    result = np.zeros((groups, columns, data.shape[2], *positions), np.result_type(data, weight))
    swapped = [(reach, step, before) for step, reach, before in moves]
    rows = _rows_last if last else _rows
    for position, far, near in _parts(positions, weight.shape[3:], data.shape[3:], swapped):
        part, taken = rows(data[..., *far]), rows(weight[..., *near])
        result[..., *position] = long_matmul(taken, part.transpose(0, 2, 1))
    return result


def unfold_axis(
    x: np.ndarray, axis: int, sizes: tuple[int, int], stride: int, dilation: int, before: int
) -> np.ndarray:
    """An axis seen through windows, as axes of `sizes` (windows, taps): a view of padded data."""
    count, kernel = sizes
    reach = (count - 1) * stride + (kernel - 1) * dilation + 1
    if not count * kernel:
        return np.zeros((*x.shape[:axis], *sizes, *x.shape[axis + 1 :]), x.dtype)
    after = max(reach - before - x.shape[axis], 0)
    if before or after:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (before, after)
        x = np.pad(x, widths)
    step = x.strides[axis]
    strides = (*x.strides[:axis], stride * step, dilation * step, *x.strides[axis + 1 :])
    shape = (*x.shape[:axis], count, kernel, *x.shape[axis + 1 :])
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


def fold_axes(
    x: np.ndarray, axis: int, size: int, stride: int, dilation: int, before: int
) -> np.ndarray:
    """Axes of windows and taps summed into the axis that they are windows of."""
    result = np.zeros((*x.shape[:axis], size, *x.shape[axis + 2 :]), x.dtype)
    lead = (slice(None),) * axis
    moves = ((stride, dilation, before),)
    for tap, far, near in _parts((x.shape[axis + 1],), (x.shape[axis],), (size,), moves):
        result[*lead, *far] += x[*lead, *near, *tap]
    return result


def window_tensor(
    one: np.ndarray, sizes: tuple[int, int, int], stride: int, dilation: int, before: int
) -> np.ndarray:
    """`one` where source = window·stride + tap·dilation - before, else 0."""
    source, count, kernel = sizes
    result = np.zeros(sizes, one.dtype)
    for tap in range(kernel):
        first, last = reading_windows(tap * dilation, count, source, stride, before)
        windows = np.arange(first, last)
        result[windows * stride + tap * dilation - before, windows, tap] = one
    return result


def _parts(
    taps: Sequence[int], near: Sequence[int], far: Sequence[int], moves: Sequence[Move]
) -> Iterator[tuple[Any, Any, Any]]:
    """For each tap: it, and the far and near positions; far = near·step + tap·reach - before."""
    for tap in np.ndindex(*taps):
        fars, nears = [], []
        for t, count, size, (step, reach, before) in zip(tap, near, far, moves, strict=True):
            first, last = reading_windows(t * reach, count, size, step, before)
            start = first * step + t * reach - before
            fars.append(slice(start, start + (last - first - 1) * step + 1, step))
            nears.append(slice(first, last))
        if all(part.start < part.stop for part in nears):
            yield tap, tuple(fars), tuple(nears)


def _zeros(
    data: np.ndarray, weight: np.ndarray, positions: Sequence[int], last: bool
) -> np.ndarray:
    """The result before anything is added, (m, g, n, positions…)."""
    dtype, channels = np.result_type(data, weight), (data.shape[1], weight.shape[1])
    if last:
        return _channels_first(np.zeros((data.shape[0], *positions, *channels), dtype))
    return np.zeros((data.shape[0], *channels, *positions), dtype)


def _channels_first(x: np.ndarray) -> np.ndarray:
    """(m, …, g, n) as (m, g, n, …)."""
    return np.moveaxis(x, (-2, -1), (1, 2))


def _times(part: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(m, g, c, …) times (g, n, c), summed over c."""
    if weight.shape[2] == 1:
        return _scaled(part, weight)
    return long_matmul(weight, _flattened(part, 3)).reshape(
        part.shape[0], *weight.shape[:2], *part.shape[3:]
    )


def _times_last(part: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`_times`, with channels innermost in memory."""
    if weight.shape[2] == 1:
        return _scaled(part, weight)
    rows = np.moveaxis(part, (1, 2), (-2, -1))
    flat = rows.reshape(math.prod(rows.shape[:-2]), *rows.shape[-2:])
    made = long_matmul(flat.transpose(1, 0, 2), weight.transpose(0, 2, 1)).transpose(1, 0, 2)
    return _channels_first(made.reshape(*rows.shape[:-2], *weight.shape[:2]))


def _scaled(part: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(m, g, 1, …) times (g, n, 1)."""
    scaled: np.ndarray = part * weight.reshape(*weight.shape[:2], *(1,) * (part.ndim - 3))
    return scaled


def _rows(x: np.ndarray) -> np.ndarray:
    """(c, g, m, …) as a matrix of rows m and all the rest for each g."""
    return _flattened(np.moveaxis(x, 0, 2), 2)


def _rows_last(x: np.ndarray) -> np.ndarray:
    """`_rows`, with g and m innermost in memory."""
    rows = np.moveaxis(x, (1, 2), (-2, -1))
    return rows.reshape(math.prod(rows.shape[:-2]), *rows.shape[-2:]).transpose(1, 2, 0)


def _flattened(x: np.ndarray, axis: int) -> np.ndarray:
    """The axes from `axis` on as one; a size of -1 would be refused where another is 0."""
    return x.reshape(*x.shape[:axis], math.prod(x.shape[axis:]))
