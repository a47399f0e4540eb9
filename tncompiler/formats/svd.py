"""Truncated singular value decompositions: exact, or randomised where the matrix is large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

_LARGE = 2_000_000  # elements; from here on a rank far below full is found by sampling
_BY_GRAM = 400  # rows from which singular values come from the Gram matrix, several times faster
_OVERSAMPLE, _POWER = 16, 4


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many singular values are kept: at most `rank`, and no more than leave `tail` out.

    ``tail`` bounds the norm of what is dropped, in units of the matrix.
    """

    rank: int | None = None
    tail: float = 0.0


def truncated_svd(
    matrix: np.ndarray, keep: Truncation, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """U, s, Vh of the kept values, and the norm of what was dropped."""
    full = min(matrix.shape)
    rank = full if keep.rank is None else min(keep.rank, full)
    sampled = matrix.size >= _LARGE and rank + _OVERSAMPLE < full // 4 and keep.rank is not None
    u, s, vh = _randomized(matrix, rank, seed) if sampled else _exact(matrix)
    if keep.tail > 0:
        rank = min(rank, _needed(s, keep.tail))
    rank = max(rank, 1) if full else 0
    dropped = max(float(np.linalg.norm(matrix)) ** 2 - float(np.sum(s[:rank] ** 2)), 0.0) ** 0.5
    if not sampled:
        dropped = float(np.linalg.norm(s[rank:]))
    return u[:, :rank], s[:rank], vh[:rank], dropped


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """All of them, descending; of a large matrix those below 1e-8 of the first are noise."""
    if min(matrix.shape) < _BY_GRAM:
        values: np.ndarray = scipy.linalg.svd(matrix, compute_uv=False, check_finite=False)
        return values
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.conj().T
    squares = scipy.linalg.eigvalsh(wide @ wide.conj().T, check_finite=False)
    return np.sqrt(np.maximum(squares[::-1], 0.0))


def _exact(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        u, s, vh = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:  # divide and conquer can fail where QR iteration does not
        u, s, vh = scipy.linalg.svd(
            matrix, full_matrices=False, check_finite=False, lapack_driver="gesvd"
        )
    return u, s, vh


def _needed(s: np.ndarray, tail: float) -> int:
    """The fewest values whose rest has a norm of at most `tail`."""
    rests = np.sqrt(np.cumsum(s[::-1] ** 2))[::-1]  # rests[k] is the norm from k on
    return int(np.count_nonzero(rests > tail))


def _randomized(
    matrix: np.ndarray, rank: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subspace iteration from a random start (Halko, Martinsson & Tropp 2011, algorithm 4.4)."""
    rng = np.random.default_rng(seed)
    size = min(rank + _OVERSAMPLE, min(matrix.shape))
    basis, _ = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], size)))
    for _ in range(_POWER):
        basis, _ = np.linalg.qr(matrix.conj().T @ basis)
        basis, _ = np.linalg.qr(matrix @ basis)
    u, s, vh = _exact(basis.conj().T @ matrix)
    return basis @ u, s, vh
