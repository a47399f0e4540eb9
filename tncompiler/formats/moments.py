"""Second moments of a layer's inputs: checked, averaged over some modes, and their roots.

A matrix (inputs, inputs), or its diagonal (inputs,) where inputs have nothing to do with one
another: a table of tokens has too many rows for a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tncompiler.formats.weights import as_array
from tncompiler.ir.errors import FormatError

FLOOR = 1e-6  # added to S, in units of its mean diagonal: unseen directions still count a little
_ROUNDING = 1e-6  # asymmetry and negative eigenvalues up to this, relative, are taken for rounding


def checked_moments(moments: Any, inputs: int, padded: int, real: bool) -> np.ndarray:
    """Moments, (padded, padded) or (padded,), with zeros for inputs that the weight does not have.

    For a `real` weight only the real part counts. Raises FormatError for what is no (inputs,) or
    (inputs, inputs) array of finite numbers, not positive semidefinite, or zero.
    """
    array = as_array(moments)
    if array.dtype.kind not in "fciu" or not np.isfinite(array).all():
        raise _not_moments("hold other things than finite numbers")
    array = array.real if real else array
    array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if array.ndim not in (1, 2) or set(array.shape) not in ({inputs}, {padded}):
        raise _not_moments(f"have shape {np.shape(moments)} for {inputs} inputs")
    largest = float(np.abs(array).max(initial=0.0))
    if not largest:
        raise _not_moments("are all zero")
    if array.ndim == 1:
        if array.dtype.kind == "c" or float(array.min()) < 0:
            raise _not_moments("have a diagonal that is not positive")
        return np.pad(array, (0, padded - len(array)))
    if not np.allclose(array, array.conj().T, rtol=0, atol=_ROUNDING * largest):
        raise _not_moments("are not symmetric")
    try:  # ten times as fast as to look at the eigenvalues
        np.linalg.cholesky(array + _ROUNDING * largest * len(array) * np.eye(len(array)))
    except np.linalg.LinAlgError:
        raise _not_moments("have negative eigenvalues") from None
    full = np.zeros((padded, padded), array.dtype)
    full[: len(array), : len(array)] = (array + array.conj().T) / 2
    return full


def _not_moments(why: str) -> FormatError:
    return FormatError(
        f"the moments {why}",
        fix="give x.conj().T @ x / len(x) of a calibration batch x, or its diagonal",
    )


def partial_trace(full: np.ndarray, sizes: Sequence[int], own: Sequence[int]) -> np.ndarray:
    """The moments of some modes, the others averaged."""
    count = len(sizes)
    rest = [k for k in range(count) if k not in own]
    if full.ndim == 1:
        diagonal: np.ndarray = full.reshape(sizes).mean(axis=tuple(rest)).ravel()
        return diagonal
    tensor = full.reshape(*sizes, *sizes)
    labels = [*range(count), *(k if k in rest else k + count for k in range(count))]
    traced = np.einsum(tensor, labels, [*own, *(k + count for k in own)])
    size = prod(sizes[k] for k in own)
    mean: np.ndarray = traced.reshape(size, size) / max(prod(sizes[k] for k in rest), 1)
    return mean


def triangular_root(moments: np.ndarray) -> np.ndarray:
    """A lower triangular L with S = L L^H, S made definite; its diagonal for a diagonal S."""
    diagonal = moments if moments.ndim == 1 else np.diagonal(moments).real
    floor = FLOOR * max(float(diagonal.mean()), np.finfo(float).tiny)
    scale = floor or 1.0
    if moments.ndim == 1:
        root: np.ndarray = np.sqrt(moments + scale)
        return root
    shifted = moments / scale + np.eye(len(moments))
    lower: np.ndarray = np.linalg.cholesky(shifted) * scale**0.5
    return lower
