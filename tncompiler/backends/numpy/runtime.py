"""Helpers that generated NumPy code calls for what NumPy has no one-liner for."""

from __future__ import annotations

import numpy as np


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
    """`x` where `by` is positive, else 0; faster than `np.where` on a random mask."""
    out = np.zeros(np.broadcast_shapes(x.shape, by.shape), dtype=x.dtype)
    np.copyto(out, x, where=by > 0)
    return out
