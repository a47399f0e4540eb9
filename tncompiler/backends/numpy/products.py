"""Products with one long extent, in pieces along it that BLAS multiplies where they lie.

OpenBLAS copies both matrices into the order of its kernel before it multiplies them, except for up
to a million multiplications on cores with AVX-512. A stack of such pieces takes 0.2 to 0.9 of the
time of the whole, where the two other extents are short; on other cores the same. Pieces are not
shared out among BLAS's threads, so whoever has those gets the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tncompiler.backends.numpy.memory import fresh
from tncompiler.backends.numpy.threads import has_one_blas_thread

MOST_TERMS = 10**6  # multiplications of a piece
SUMMED = 256  # terms of a piece of a sum: BLAS adds them one by one
LEAST_ACROSS = 128  # the two other extents multiplied: below, BLAS has loops that copy nothing
# from here on copying is cheap beside multiplying; by the long extent and by the form: "n" for a
# matrix as it lies, "t" for a transposed view
MOST_ACROSS = {
    "m": {"nn": 4096, "tn": 4096},
    "n": {"nn": 1024, "tn": 4096},
    "k": {"nn": 1024, "nt": 1024, "tn": 4096, "tt": 4096},
}
_MOST_SUMS = 2**18  # elements of all pieces of a sum together
Empty = Callable[[tuple[int, ...], Any], np.ndarray]
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b` of shapes (..., m, k) and (..., k, n)."""
    return multiply_alone(a, b) if has_one_blas_thread() else a @ b


def multiply_alone(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`multiply` where BLAS has one thread."""
    made = in_pieces(a, b)
    return a @ b if made is None else made


def multiplied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`multiply` into memory that earlier arrays have left."""
    return product(a, b, alone=has_one_blas_thread())


def product(
    a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, *, alone: bool = True
) -> np.ndarray:
    """`multiply_alone` in a block of a loop, into memory that earlier arrays have left.

    ``out``: where the result belongs, of as many elements. It is made there at once if that array
    has no gaps or is of the same shape, else put there. ``alone``: whether BLAS has one thread.
    Returns the result, maybe in ``out``.
    """
    if a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
        return _put(a @ b, out)

    def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if out is not None and (out.shape == shape or out.flags.c_contiguous):
            return out.reshape(shape)
        return fresh(shape, dtype)

    made = in_pieces(a, b, empty) if alone else None
    if made is None:
        made = empty((*_lead(a, b), a.shape[-2], b.shape[-1]), a.dtype)
        np.matmul(a, b, out=made)
    return _put(made, out)


def _put(made: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What was made, put where it belongs unless it is there."""
    if out is not None and not np.may_share_memory(made, out):
        out[...] = made.reshape(out.shape)
    return made


def in_pieces(a: np.ndarray, b: np.ndarray, empty: Empty = np.empty) -> np.ndarray | None:
    """`a @ b` in pieces, in an array that `empty` makes; None where that does not pay."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    if m * n * k <= MOST_TERMS or a.dtype not in _DTYPES or a.dtype != b.dtype:
        return None
    longest = max(m, n, k)
    across = m * n * k // longest
    axis = "m" if longest == m else "k" if longest == k else "n"
    if not LEAST_ACROSS <= across <= MOST_ACROSS[axis].get(_form(a, b), 0):
        return None
    piece = 1 << (MOST_TERMS // across).bit_length() - 1
    if axis == "k":
        piece = SUMMED
        if longest // piece * across > _MOST_SUMS:
            return None
    return _PIECES[axis](a, b, piece, empty) if longest >= 2 * piece else None


def _form(a: np.ndarray, b: np.ndarray) -> str:
    """Which of the two matrices is a transposed view."""
    return "".join("n" if x.strides[-1] == x.itemsize else "t" for x in (a, b))


def _lead(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
    if a.ndim > 2 < b.ndim:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.shape[:-2] or b.shape[:-2]


def _by_rows(a: np.ndarray, b: np.ndarray, piece: int, empty: Empty) -> np.ndarray:
    rows, n = a.shape[-2], b.shape[-1]
    count = rows // piece
    cut = count * piece
    out = empty((*_lead(a, b), rows, n), a.dtype)
    pieces = a[..., :cut, :].reshape(*a.shape[:-2], count, piece, a.shape[-1])
    into = out[..., :cut, :].reshape(*out.shape[:-2], count, piece, n)
    np.matmul(pieces, b[..., None, :, :], out=into)
    if cut < rows:
        np.matmul(a[..., cut:, :], b, out=out[..., cut:, :])
    return out


def _by_columns(a: np.ndarray, b: np.ndarray, piece: int, empty: Empty) -> np.ndarray:
    m, columns = a.shape[-2], b.shape[-1]
    count = columns // piece
    cut = count * piece
    out = empty((*_lead(a, b), m, columns), a.dtype)
    pieces = b[..., :cut].reshape(*b.shape[:-1], count, piece).swapaxes(-3, -2)
    into = out[..., :cut].reshape(*out.shape[:-1], count, piece).swapaxes(-3, -2)
    np.matmul(a[..., None, :, :], pieces, out=into)
    if cut < columns:
        np.matmul(a, b[..., cut:], out=out[..., cut:])
    return out


def sum_of_pieces(a: np.ndarray, b: np.ndarray, piece: int, _: Empty = np.empty) -> np.ndarray:
    """`a @ b` as a sum over so many terms at a time."""
    terms, n = a.shape[-1], b.shape[-1]
    count = terms // piece
    cut = count * piece
    left = a[..., :cut].reshape(*a.shape[:-1], count, piece).swapaxes(-3, -2)
    right = b[..., :cut, :].reshape(*b.shape[:-2], count, piece, n)
    out: np.ndarray = np.matmul(left, right).sum(axis=-3)
    if cut < terms:
        out += a[..., cut:] @ b[..., cut:, :]
    return out


Cut = Callable[[np.ndarray, np.ndarray, int, Empty], np.ndarray]
_PIECES: dict[str, Cut] = {"m": _by_rows, "n": _by_columns, "k": sum_of_pieces}
