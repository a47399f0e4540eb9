"""Helpers that generated NumPy code calls for what NumPy has no one-liner for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tncompiler.backends.numpy.emit import LONG_SUM, SMALL_PRODUCT
from tncompiler.backends.numpy.products import sum_of_pieces
from tncompiler.ir.functions.random import scramble as scramble  # for generated code

_HELD = 2**15  # elements that are worked on at a time where a function takes more than its result
_MOST_AXES = 64  # NumPy's limit, so that no axis can be split
_SHORT, _BLOCKS, _BLOCK = 256, 16, 4096  # blocks of so many terms; of a long sum 16, then of 4096


def embed_diagonal(x: np.ndarray, pattern: tuple[int, ...]) -> np.ndarray:
    """Axis k of `x` spread over all positions of k in `pattern`; 0 off the diagonals."""
    shape = tuple(x.shape[k] for k in pattern)
    out = np.zeros(shape, dtype=x.dtype)
    np.einsum(out, list(pattern), list(range(x.ndim)))[...] = x
    return out


def take_diagonal(x: np.ndarray, labels: tuple[int, ...], out: tuple[int, ...]) -> np.ndarray:
    """The entries of `x` where axes with one label agree, as a view."""
    return np.einsum(x, list(labels), list(out))  # type: ignore[no-any-return]


def gate(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`x` where `by` is positive, else 0.

    Masks the bits: a tenth of what `np.where` costs on a random mask, and exact for inf and nan.
    """
    integer = np.dtype(f"i{x.dtype.itemsize}")
    mask = np.asarray(by > 0).astype(integer)
    np.negative(mask, out=mask)
    bits = np.asarray(x).view(integer)
    into = mask if mask.shape == bits.shape else None
    gated: np.ndarray = np.bitwise_and(mask, bits, out=into)
    return gated.view(x.dtype)


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x/√2)) in one new array."""
    from scipy.special import erf  # only programs that use it pay for importing scipy

    out = np.empty_like(x)
    np.multiply(x, math.sqrt(0.5), out=out)
    erf(out, out=out)
    out += 1.0
    out *= x
    out *= 0.5
    return out


def gelu_gate(ct: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The cotangent times gelu's slope, (1 + erf(x/√2))/2 + x exp(-x²/2)/√(2π), in one new array.

    In blocks of rows, so that what the slope takes beside it stays small and in the cache.
    """
    ct, x = np.broadcast_arrays(ct, x)
    out = np.empty(x.shape, np.result_type(ct, x))
    rows = len(out) if out.ndim else 1
    step = max(1, _HELD * rows // max(out.size, 1))
    for start in range(0, rows, step):
        block = slice(start, start + step) if out.ndim else ...
        np.multiply(ct[block], _gelu_slope(x[block]), out=out[block])
    return out


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    slope = np.asarray(erf(x * math.sqrt(0.5)))
    slope += 1.0
    slope *= 0.5
    bell = np.asarray(np.square(x))
    bell *= -0.5
    np.exp(bell, out=bell)
    bell *= x
    bell *= 1.0 / math.sqrt(2.0 * math.pi)
    slope += bell
    return slope


def rsqrt(x: np.ndarray) -> np.ndarray:
    """1/√x in one new array."""
    out: np.ndarray = np.asarray(np.sqrt(x))
    np.divide(1.0, out, out=out)
    return out


def two_terms(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A column and a row, of shapes (..., m, 1) and (..., 1, n), with a second term of zeros.

    NumPy has a loop of its own for products of one term; BLAS does two in a tenth of its time.
    """
    left = np.zeros((*a.shape[:-1], 2), a.dtype)
    right = np.zeros((*b.shape[:-2], 2, b.shape[-1]), b.dtype)
    left[..., :1], right[..., :1, :] = a, b
    return left, right


def long_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b` of shapes (..., m, k) and (..., k, n), in blocks of k where BLAS adds term by term.

    The error of a sum of positive terms is then that of one block, averaged over the blocks.
    """
    rows, length, columns = *a.shape[-2:], b.shape[-1]
    work = rows * length * columns
    if length <= LONG_SUM or (work > SMALL_PRODUCT and rows > 1 and columns > 1):
        return a @ b  # type: ignore[no-any-return]
    return sum_of_pieces(a, b, _cut(length)[1])


def long_sum(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`x.sum(axes)`, in blocks: NumPy adds term by term along any axis but the innermost."""
    innermost = len(axes) == 1 and x.strides[axes[0]] == x.itemsize
    if innermost or x.ndim >= _MOST_AXES or math.prod(x.shape[axis] for axis in axes) <= LONG_SUM:
        return x.sum(axis=axes)  # type: ignore[no-any-return]
    longest = max(axes, key=x.shape.__getitem__)
    x = np.moveaxis(x, longest, 0)
    rest = tuple(axis + (axis < longest) for axis in axes if axis != longest)
    blocks, block, cut = _cut(len(x))
    parts = x[:cut].reshape(blocks, block, *x.shape[1:])
    total = parts.sum(axis=(1, *(axis + 1 for axis in rest))).sum(axis=0)
    return total + x[cut:].sum(axis=(0, *rest))  # type: ignore[no-any-return]


def _cut(length: int) -> tuple[int, int, int]:
    """Number of blocks, terms in a block, and how many terms they cover together."""
    blocks = max(min(_BLOCKS, -(-length // _SHORT)), length // _BLOCK)
    return blocks, length // blocks, length // blocks * blocks


def power_of_two(x: np.ndarray) -> np.ndarray:
    """The largest power of two up to each size; 1 for zero, subnormal, infinite and NaN ones."""
    x = np.asarray(x)
    integer, digits, _ = _float_format(x.dtype)
    power = (x.view(integer) >> digits << digits).view(x.dtype)  # the sign bit is 0
    usable = (power > 0) & (power < np.inf)
    return np.where(usable, power, x.dtype.type(1))


def exponent(power: np.ndarray) -> np.ndarray:
    """log2 of powers of two (normal numbers), exactly, as whole numbers in their dtype."""
    power = np.asarray(power)
    integer, digits, bias = _float_format(power.dtype)
    whole: np.ndarray = (power.view(integer) >> digits) - bias
    return whole.astype(power.dtype)


def shift_exponent(e: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`2**e * x` for whole e: in steps, as 2**e alone may be out of range where the product is not.

    Three steps take the smallest number beyond the largest, and back.
    """
    x = np.asarray(x)
    if np.iscomplexobj(x):  # part by part: an infinite complex number times a real one is NaN
        made = np.empty(np.broadcast_shapes(np.shape(e), x.shape), x.dtype)
        made.real, made.imag = shift_exponent(e, x.real), shift_exponent(e, x.imag)
        return made
    integer, digits, bias = _float_format(x.dtype)
    left = np.clip(e, -3 * bias + 3, 3 * bias - 3).astype(integer)
    while True:
        step = np.clip(left, 1 - bias, bias - 1)
        x = x * (step + bias << digits).view(x.dtype)
        left = left - step
        if not left.any():
            return x


def _float_format(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int, int]:
    """An integer of the size, the digits of the fraction, and the bias of the exponent."""
    if dtype.itemsize == 4:
        return np.dtype(np.int32), 23, 127
    return np.dtype(np.int64), 52, 1023
