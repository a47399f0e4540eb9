"""Helpers that generated torch code calls; differentiable, no data-dependent control flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tncompiler.backends.torch.emit import ONE_TILE
from tncompiler.backends.torch.long_sums import (
    BLOCK,
    IN_TURN,
    LONG_SUM,
    NARROW,
    STACKS_IN_TURN,
    cut,
)
from tncompiler.backends.torch.tracing import is_exporting
from tncompiler.ir.functions.random import scramble as scramble  # for generated code

Multiply = Callable[[Tensor, Tensor], Tensor]
Add = Callable[[Tensor, Tensor, Tensor], Tensor]

_MOST_AXES = 12  # that the library behind some of torch's functions takes
_LEAST_EXP = {torch.float32: -87.336, torch.float64: -708.396}  # of which exp is a normal number
_HALVES = (torch.float16, torch.bfloat16)
_PROGRAMS = 128  # at a time on a large GPU


def embed_diagonal(x: Tensor, pattern: tuple[int, ...]) -> Tensor:
    """Axis k of `x` spread over all positions of k in `pattern`; 0 off the diagonals."""
    order = list(range(x.ndim))
    for label in range(x.ndim):
        for _ in range(pattern.count(label) - 1):
            x = x.movedim(order.index(label), -1)
            order.remove(label)
            order += [label, label]
            x = torch.diag_embed(x)
    positions = []
    for label in pattern:
        axis = next(k for k, own in enumerate(order) if own == label and k not in positions)
        positions.append(axis)
    return x.permute(positions)


def take_diagonal(x: Tensor, labels: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """The entries of `x` where axes with one label agree, as a view."""
    order = list(labels)
    for label in dict.fromkeys(labels):
        while order.count(label) > 1:
            first = order.index(label)
            second = order.index(label, first + 1)
            x = x.diagonal(dim1=first, dim2=second)
            order = [k for i, k in enumerate(order) if i not in (first, second)] + [label]
    return x.permute([order.index(label) for label in out])


def long_mm(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of shapes (m, k) and (k, n), where the library may add k positive terms one by one.

    So it gets blocks of k. The error is then that of one block, averaged over the blocks.
    """
    if not _loses_digits(a, b):
        return torch.mm(a, b)
    (rows, length), columns = a.shape, b.shape[1]
    if rows == columns == 1:  # a fifth of the time, and sums go in pairs
        return (a.reshape(length) * b.reshape(length)).sum().reshape(1, 1)
    if _is_short(a, IN_TURN):
        return _in_turn(torch.mm, torch.addmm, a, b)
    blocks, block, whole = cut(length)
    left = a[:, :whole].reshape(rows, blocks, block).transpose(0, 1)
    total = torch.bmm(left, b[:whole].reshape(blocks, block, columns)).sum(0)
    return total if whole == length else total + torch.mm(a[:, whole:], b[whole:])


def long_bmm(a: Tensor, b: Tensor) -> Tensor:
    """`long_mm` of a batch: shapes (batch, m, k) and (batch, k, n).

    On a GPU blocks share out the sum as well: 8 products of (16, 262144) and (262144, 16) took
    11 ms of an H200, as each was one program.
    """
    if not (_loses_digits(a, b) or _is_left_to_few(a, b)):
        return torch.bmm(a, b)
    (batch, rows, length), columns = a.shape, b.shape[2]
    if rows == columns == 1:
        return (a.reshape(batch, length) * b.reshape(batch, length)).sum(1).reshape(batch, 1, 1)
    if _is_short(a, STACKS_IN_TURN):  # of which the other way would copy the first matrices
        return _in_turn(torch.bmm, torch.baddbmm, a, b)
    blocks, block, whole = cut(length)
    left = a[:, :, :whole].reshape(batch, rows, blocks, block).transpose(1, 2)
    right = b[:, :whole].reshape(batch * blocks, block, columns)
    parts = torch.bmm(left.reshape(batch * blocks, rows, block), right)
    total = parts.reshape(batch, blocks, rows, columns).sum(1)
    return total if whole == length else total + torch.bmm(a[:, :, whole:], b[:, whole:])


def _is_short(a: Tensor, blocks: int) -> bool:
    """Whether so many blocks of LONG_SUM terms, added up one after another, are the whole sum, and
    rounding what is added up so far costs nothing; a traced program would know one length only."""
    if torch.compiler.is_compiling():
        return False
    return a.shape[-1] <= blocks * LONG_SUM and a.is_cpu and a.dtype not in _HALVES


def _in_turn(multiply: Multiply, add: Add, a: Tensor, b: Tensor) -> Tensor:
    """A product by blocks of its sum, each added to those before."""
    length = a.shape[-1]
    block = math.ceil(length / math.ceil(length / LONG_SUM))
    total = multiply(a[..., :block], b[..., :block, :])
    for start in range(block, length, block):
        stop = start + block
        total = add(total, a[..., start:stop], b[..., start:stop, :])
    return total


def gelu_gate(ct: Tensor, x: Tensor) -> Tensor:
    """The cotangent times gelu's slope at x.

    The library wants equal shapes of at most 12 axes, and refuses cotangents with gaps (a diagonal,
    every second column), whatever x looks like.
    """
    if ct.shape != x.shape:
        shape = torch.broadcast_shapes(ct.shape, x.shape)  # type: ignore[no-untyped-call]
        ct, x = ct.expand(shape), x.expand(shape)
    if ct.stride() != x.stride():
        ct = ct.contiguous()
    if x.ndim <= _MOST_AXES:
        return torch.ops.aten.gelu_backward(ct, x)  # type: ignore[no-any-return]
    flat = torch.ops.aten.gelu_backward(ct.reshape(-1), x.reshape(-1))
    return flat.reshape(x.shape)  # type: ignore[no-any-return]


def exp_below(x: Tensor) -> Tensor:
    """exp of numbers that a maximum was taken from: 0 where it would be below the normal numbers.

    There the library takes 6 to 16 times as long, and what a mask leaves out is far below.
    """
    least = _LEAST_EXP.get(x.dtype)
    if least is None or x.device.type != "cpu":
        return torch.exp(x)
    raised, alone = x.clamp_min(least).exp_(), not torch.is_grad_enabled()
    return functional.threshold(raised, math.exp(least) * (1 + 1e-5), 0.0, inplace=alone)


def long_sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """`x.sum(axes)`; one axis at a time, which torch cuts into blocks itself, if it is long.

    Axes that lie together are one: an inner one of few elements would be summed slowly.
    """
    if is_exporting():
        return _sum_one_by_one(x, axes)
    if math.prod(x.shape[k] for k in axes) <= LONG_SUM:
        return x.sum(axes)
    merged: list[int] = []
    for axis in sorted(axes, reverse=True):
        if merged and merged[-1] == axis + 1 and _lie_together(x, axis):
            x = x.flatten(axis, axis + 1)
            merged.pop()
        merged.append(axis)
    return _sum_one_by_one(x, merged)


def _sum_one_by_one(x: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.sum(axis)
    return x


def _lie_together(x: Tensor, axis: int) -> bool:
    """Whether an axis and the next are one in memory."""
    return x.stride(axis) == x.shape[axis + 1] * x.stride(axis + 1)


def _loses_digits(a: Tensor, b: Tensor) -> bool:
    """Whether the library may add the terms of a product one by one; exports stay as they are."""
    if is_exporting():  # a choice by size would fix the exported program's sizes
        return False
    rows, length, columns = *a.shape[-2:], b.shape[-1]
    return length > LONG_SUM and min(rows, columns) < NARROW


def _is_left_to_few(a: Tensor, b: Tensor) -> bool:
    """Whether a GPU would have long sums in a few programs; exports stay as they are."""
    if a.device.type == "cpu" or is_exporting():
        return False
    (batch, rows, length), columns = a.shape, b.shape[2]
    tiles = math.ceil(rows / ONE_TILE) * math.ceil(columns / ONE_TILE)
    return length > 2 * BLOCK and batch * tiles < _PROGRAMS


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two up to each size; 1 for zero, subnormal, infinite and NaN ones."""
    integer, digits, _ = _layout_of(x)
    power = (x.view(integer) >> digits << digits).view(x.dtype)  # the sign bit is 0
    return torch.where((power > 0) & (power < math.inf), power, 1.0)


def exponent(power: Tensor) -> Tensor:
    """log2 of powers of two (normal numbers), exactly, as whole numbers in their dtype."""
    integer, digits, bias = _layout_of(power)
    return ((power.view(integer) >> digits) - bias).to(power.dtype)


def shift_exponent(e: Tensor, x: Tensor) -> Tensor:
    """`2**e * x` for whole e: in steps, as 2**e alone may be out of range where the product is not.

    Three steps take the smallest number beyond the largest, and back.
    """
    if x.is_complex():  # part by part: an infinite complex number times a real one is NaN
        return torch.complex(shift_exponent(e, x.real), shift_exponent(e, x.imag))
    integer, digits, bias = _layout_of(x)
    left = e.clamp(-3 * bias + 3, 3 * bias - 3).to(integer)
    for _ in range(3):
        step = left.clamp(1 - bias, bias - 1)
        x = x * (step + bias << digits).view(x.dtype)
        left = left - step
    return x


def _layout_of(x: Tensor) -> tuple[torch.dtype, int, int]:
    """An integer of a number's size, digits of its fraction, bias of its exponent.

    No table, as regions that torch.compile traces once cannot tell whether it is still the same.
    """
    return (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
