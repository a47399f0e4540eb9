"""Convolutions that generated torch code calls: the library's where it is plain, else tap by tap.

Where nothing else is said, data is (m, g, c, positions…), a weight (g, n, c, taps…), a result
(m, g, n, positions…), and the sum is over c. ``last``: data and result (or, of a kernel's gradient,
both operands) have channels after the positions in memory. Torch can differentiate, transform and
export all of it: nothing is written in place. For double precision, complex numbers and integers
the library would copy the data once for every tap; here it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Move = tuple[int, int, int]  # the step from one position to the next, from tap to tap, the padding
_Image = Callable[[Tensor], Tensor]
_Function = Callable[[Tensor, Tensor, Sequence[int], Sequence[Move], _Image], Tensor]

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_VENDORS = (torch.float32, torch.float16, torch.bfloat16)


def gather_windows(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> Tensor:
    """result[o] = sum over taps t of data[o·step + t·reach - before] · weight[t]."""
    if _is_plain(data, weight, positions):
        return _by_library(_convolution, data, weight, positions, moves, last)
    padded = _with_zeros(data, weight.shape[3:], positions, moves)
    total = None
    for tap in product(*map(range, weight.shape[3:])):
        part = padded[_inner(_slices(tap, positions, moves))]
        term = _times(part, weight[_inner(tap)])
        total = term if total is None else total + term
    shape = (*data.shape[:2], weight.shape[1], *positions)
    return data.new_zeros(shape) if total is None else total


def scatter_windows(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> Tensor:
    """result[d·step + t·reach - before] += data[d] · weight[t], for all d and taps t."""
    if _is_plain(data, weight, positions):
        return _by_library(_transposed, data, weight, positions, moves, last)
    total = None
    for tap in product(*map(range, weight.shape[3:])):
        term = _times(data, weight[_inner(tap)])
        for axis, (t, (step, reach, before)) in enumerate(zip(tap, moves, strict=True), start=3):
            term = _spread(term, axis, step, t * reach - before, positions[axis - 3])
        total = term if total is None else total + term
    shape = (*data.shape[:2], weight.shape[1], *positions)
    return data.new_zeros(shape) if total is None else total


def kernel_windows(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    *,
    last: bool = False,
) -> Tensor:
    """What `gather_windows` gives, where taps are many and positions few: a kernel's gradient.

    Data is (c, g, m, …), the weight (c, g, n, taps…), the result (g, n, m, positions…).
    """
    if _is_plain(data, weight, positions):
        return _by_library(_weight_gradient, data, weight, positions, moves, last)
    padded = _with_zeros(data, weight.shape[3:], positions, moves)
    swapped = [(reach, step, before) for step, reach, before in moves]
    kernels = weight.movedim(0, 2).flatten(2)
    made = []
    for position in product(*map(range, positions)):
        part = padded[_inner(_slices(position, weight.shape[3:], swapped))]
        made.append(torch.bmm(kernels, part.movedim(0, 2).flatten(2).transpose(1, 2)))
    shape = (*weight.shape[1:3], data.shape[2], *positions)
    return torch.stack(made, -1).reshape(shape) if made else data.new_zeros(shape)


def unfold_axis(
    x: Tensor, axis: int, sizes: tuple[int, int], stride: int, dilation: int, before: int
) -> Tensor:
    """An axis seen through windows, as axes of `sizes` (windows, taps): a view of padded data."""
    count, kernel = sizes
    if not count * kernel:
        return x.new_zeros((*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))
    moved = x.movedim(axis, -1)
    last = (count - 1) * stride + (kernel - 1) * dilation - before + 1 - x.shape[axis]
    if before or last > 0:
        moved = functional.pad(moved, (before, max(last, 0)))
    seen = moved.unfold(-1, (kernel - 1) * dilation + 1, stride)[..., :count, ::dilation]
    return seen.movedim((-2, -1), (axis, axis + 1))


def fold_axes(x: Tensor, axis: int, size: int, stride: int, dilation: int, before: int) -> Tensor:
    """Axes of windows and taps summed into the axis that they are windows of."""
    total = x.new_zeros((*x.shape[:axis], size, *x.shape[axis + 2 :]))
    for tap in range(x.shape[axis + 1]):
        term = x.select(axis + 1, tap)
        total = total + _spread(term, axis, stride, tap * dilation - before, size)
    return total


def window_tensor(
    one: Tensor, sizes: tuple[int, int, int], stride: int, dilation: int, before: int
) -> Tensor:
    """`one` where source = window·stride + tap·dilation - before, else 0."""
    source, count, kernel = (torch.arange(size, device=one.device) for size in sizes)
    position = count[:, None] * stride + kernel * dilation - before
    return (source[:, None, None] == position).to(one.dtype)


# ---------------------------------------------------------------------------- the library's


def _is_plain(data: Tensor, weight: Tensor, positions: Sequence[int]) -> bool:
    """Whether the library has a convolution for it that does not unfold the data."""
    known = data.dtype in _VENDORS and len(positions) <= len(_CONV)
    return known and 0 not in (*data.shape, *weight.shape, *positions)


def _by_library(
    function: _Function,
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    last: bool,
) -> Tensor:
    """The library's function, in the order of axes in which it is fast.

    In one dimension it is called for two, which it knows better. In groups it is some ten times as
    fast with channels last, so that images are turned round for it.
    """
    if len(moves) == 1:
        wide = (data.unsqueeze(3), weight.unsqueeze(3), (1, *positions), ((1, 1, 0), *moves))
        return _by_library(function, *wide, last).squeeze(3)
    grouped = weight.shape[1 if function is _weight_gradient else 0] > 1
    image = _channels_last if last or grouped else _merged
    made = function(data, weight, positions, moves, image)
    if function is _weight_gradient:
        return made
    if last:  # which the library does not always keep, where there is one channel
        return made.movedim((1, 2), (-2, -1)).contiguous().movedim((-2, -1), (1, 2))
    return made.contiguous() if grouped else made


def _merged(data: Tensor) -> Tensor:
    """The data with groups and channels as one axis."""
    return data.flatten(1, 2)


def _channels_last(data: Tensor) -> Tensor:
    """The data with groups and channels as one axis, which is innermost in memory."""
    merged = data.flatten(1, 2)
    if merged.shape[1] == 1:  # of one channel, only its stride says where it is
        return merged.squeeze(1).contiguous().unsqueeze(-1).movedim(-1, 1)
    return merged.movedim(1, -1).contiguous().movedim(-1, 1)


def _convolution(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    image: _Image,
) -> Tensor:
    steps, reaches, padding = zip(*moves, strict=True)
    missing = _missing(data, weight.shape[3:], positions, moves)
    if any(m > p for p, m in zip(padding, missing, strict=True)):
        after = [max(m, 0) for m in missing]
        data, padding = _padded(data, padding, after), (0,) * len(moves)
    made = _CONV[len(moves) - 1](
        image(data),
        weight.flatten(0, 1).contiguous(),  # one with channels last gives wrong sums in groups
        stride=steps,
        padding=padding,
        dilation=reaches,
        groups=weight.shape[0],
    )
    cut = made[_inner(slice(0, size) for size in positions)]
    return cut.reshape(data.shape[0], *weight.shape[:2], *positions)


def _transposed(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    image: _Image,
) -> Tensor:
    steps, reaches, padding = zip(*moves, strict=True)
    full = [
        (d - 1) * step + (t - 1) * reach + 1
        for d, t, (step, reach, _) in zip(data.shape[3:], weight.shape[3:], moves, strict=True)
    ]
    more = [p + 2 * before - f for p, f, before in zip(positions, full, padding, strict=True)]
    fits = all(0 <= m < max(step, reach) for m, (step, reach, _) in zip(more, moves, strict=True))
    made = _TRANSPOSED[len(moves) - 1](
        image(data),
        weight.transpose(1, 2).flatten(0, 1).contiguous(),
        stride=steps,
        padding=padding if fits else 0,
        output_padding=more if fits else 0,
        dilation=reaches,
        groups=weight.shape[0],
    )
    if not fits:
        made = _at_offsets(made, padding, positions)
    return made.reshape(data.shape[0], *weight.shape[:2], *positions)


def _weight_gradient(
    data: Tensor,
    weight: Tensor,
    positions: Sequence[int],
    moves: Sequence[Move],
    image: _Image,
) -> Tensor:
    """`kernel_windows` by the library, which has a function of its own for it."""
    dilation, stride, padding = zip(*moves, strict=True)  # positions are taps of the kernel
    missing = _missing(data, weight.shape[3:], positions, moves)
    if any(not 0 <= p - m < s for p, m, s in zip(padding, missing, stride, strict=True)):
        whole = [p + n + m for p, n, m in zip(padding, data.shape[3:], missing, strict=True)]
        data, padding = _at_offsets(data, [-p for p in padding], whole), (0,) * len(moves)
    groups, columns, channels = weight.shape[1], weight.shape[2], data.shape[2]
    kernel = data.new_empty(()).expand(groups * columns, channels, *positions)
    made: Tensor = torch.ops.aten.convolution_backward(
        image(weight),
        image(data),
        kernel,
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(moves),
        groups,
        [False, True, False],
    )[1]
    return made.reshape(groups, columns, channels, *positions)


def _missing(
    data: Tensor, taps: Sequence[int], positions: Sequence[int], moves: Sequence[Move]
) -> list[int]:
    """Zeros that the last position reads after the data; less than 0 where it stops before."""
    return [
        (count - 1) * step + (many - 1) * reach - before + 1 - size
        for size, many, count, (step, reach, before) in zip(
            data.shape[3:], taps, positions, moves, strict=True
        )
    ]


def _padded(data: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """The data with zeros around its last axes."""
    widths = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return functional.pad(data, widths) if any(widths) else data


def _at_offsets(data: Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """`sizes` positions of the last axes from `offsets` on, zeros where the data has none."""
    old = data.shape[-len(sizes) :]
    after = [max(first + n - m, 0) for first, n, m in zip(offsets, sizes, old, strict=True)]
    data = _padded(data, [max(-first, 0) for first in offsets], after)
    for axis, (first, size) in enumerate(zip(offsets, sizes, strict=True), -len(sizes)):
        data = data.narrow(axis, max(first, 0), size)
    return data


# ---------------------------------------------------------------------------- tap by tap


def _with_zeros(
    data: Tensor, taps: Sequence[int], positions: Sequence[int], moves: Sequence[Move]
) -> Tensor:
    """The data with the zeros around it that taps read."""
    missing = _missing(data, taps, positions, moves)
    return _padded(data, [before for _, _, before in moves], [max(n, 0) for n in missing])


def _slices(tap: Sequence[int], positions: Sequence[int], moves: Sequence[Move]) -> list[Any]:
    """What a tap reads of padded data."""
    return [
        slice(t * reach, t * reach + (count - 1) * step + 1 if count else t * reach, step)
        for t, count, (step, reach, _) in zip(tap, positions, moves, strict=True)
    ]


def _inner(places: Iterable[Any]) -> tuple[Any, ...]:
    """An index of the last axes."""
    return (..., *places)


def _spread(x: Tensor, axis: int, step: int, offset: int, size: int) -> Tensor:
    """Position p of an axis at p·step + offset of an axis of `size`, zeros elsewhere."""
    x = x.movedim(axis, -1)
    if step > 1:
        x = functional.pad(x.unsqueeze(-1), (0, step - 1)).flatten(-2)
    return _at_offsets(x, (-offset,), (size,)).movedim(-1, axis)


def _times(part: Tensor, weight: Tensor) -> Tensor:
    """(m, g, c, …) times (g, n, c), summed over c."""
    if weight.shape[2] == 1:
        return part * weight.reshape(*weight.shape[:2], *(1,) * (part.ndim - 3))
    rows = part.flatten(3)
    return torch.matmul(weight, rows).reshape(part.shape[0], *weight.shape[:2], *part.shape[3:])
