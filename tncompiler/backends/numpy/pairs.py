"""Truncate a bond, in double precision; generated NumPy code calls these."""

from __future__ import annotations

import numpy as np

from tncompiler.ir.pairs_numbers import Spectrum


def leading_pairs(left: np.ndarray, right: np.ndarray, count: int, cutoff: float) -> np.ndarray:
    """The leading directions, (…, r, count), of Gram matrices (…, r, r)."""
    wide = left.astype(np.float64), right.astype(np.float64)
    made: np.ndarray = Spectrum(np, *wide, count, cutoff).value
    return made.astype(left.dtype)


def leading_pairs_adjoint(
    left: np.ndarray, right: np.ndarray, cotangent: np.ndarray, count: int, cutoff: float
) -> np.ndarray:
    """Gradients by both matrices, (…, 2, r, r)."""
    wide = left.astype(np.float64), right.astype(np.float64)
    both = Spectrum(np, *wide, count, cutoff).gradients(np, cotangent.astype(np.float64))
    return np.stack(both, -3).astype(left.dtype)
