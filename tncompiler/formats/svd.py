"""Truncated singular value decompositions: exact, or randomised where the matrix is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

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


@dataclass(slots=True)
class TailBudget:
    """A norm that several truncations in a row may leave out together.

    ``total`` is that norm, ``steps`` the truncations still to come, ``spent`` the squares that
    earlier ones left out. What one step does not use, the later ones share.
    """

    total: float
    steps: int
    spent: float = 0.0

    def share(self) -> float:
        """What the next truncation may leave out."""
        return float((max(self.total**2 - self.spent, 0.0) / max(self.steps, 1)) ** 0.5)

    def spend(self, dropped: float) -> None:
        self.spent += dropped**2
        self.steps -= 1

    @property
    def dropped(self) -> float:
        """The root of the sum of squares of all that was left out."""
        return float(self.spent**0.5)


def truncated_svd(
    matrix: np.ndarray, keep: Truncation, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """U, s, Vh of the kept values, and the norm of what was dropped.

    s Vh is U^H times the matrix, for sampled values too: what is dropped is orthogonal to what is
    kept, so the squares of several truncations in a row add up.
    """
    full = min(matrix.shape)
    rank = full if keep.rank is None else min(keep.rank, full)
    sampled = matrix.size >= _LARGE and rank + _OVERSAMPLE < full // 4
    u, s, vh = _randomized(matrix, rank, seed) if sampled else _exact(matrix)
    unseen = float(np.linalg.norm(matrix - (u * s) @ vh)) if sampled else 0.0
    if keep.tail > 0:
        rank = min(rank, _needed(s, keep.tail, unseen))
    rank = max(rank, 1) if full else 0
    dropped = float(np.hypot(np.linalg.norm(s[rank:]), unseen))
    return u[:, :rank], s[:rank], vh[:rank], dropped


def project(
    tensor: np.ndarray, axes: Sequence[int], rank: int, budget: TailBudget, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Some axes replaced by one, the best subspace of `rank` for them.

    Returns an orthonormal basis (*sizes of the axes, rank) and the tensor in it, the new axis first
    and the others after it in their order. The budget says, and learns, what may be left out.
    """
    rest = [axis for axis in range(tensor.ndim) if axis not in axes]
    sizes = [tensor.shape[axis] for axis in axes]
    matrix = tensor.transpose([*axes, *rest]).reshape(prod(sizes), -1)
    u, s, vh, dropped = truncated_svd(matrix, Truncation(rank, budget.share()), seed)
    budget.spend(dropped)
    inside = (s[:, None] * vh).reshape(len(s), *(tensor.shape[axis] for axis in rest))
    return u.reshape(*sizes, len(s)), inside


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """All of them, descending; those of a large matrix from below, zero under 1e-7 of the first."""
    if min(matrix.shape) < _BY_GRAM:
        values: np.ndarray = scipy.linalg.svd(matrix, compute_uv=False, check_finite=False)
        return values
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.conj().T
    squares = scipy.linalg.eigvalsh(wide @ wide.conj().T, check_finite=False)[::-1]
    noise = len(squares) * np.finfo(float).eps * squares[0]
    roots: np.ndarray = np.sqrt(np.maximum(squares - noise, 0.0))
    return roots


def _exact(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        u, s, vh = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:  # divide and conquer can fail where QR iteration does not
        u, s, vh = scipy.linalg.svd(
            matrix, full_matrices=False, check_finite=False, lapack_driver="gesvd"
        )
    return u, s, vh


def _needed(s: np.ndarray, tail: float, unseen: float) -> int:
    """The fewest values whose rest, with what was not sampled, has a norm of at most `tail`."""
    rests = np.sqrt(np.cumsum(s[::-1] ** 2) + unseen**2)[::-1]  # rests[k] is the norm from k on
    return int(np.count_nonzero(rests > tail))


def _randomized(
    matrix: np.ndarray, rank: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subspace iteration from a random start.

    Source: Halko, Martinsson & Tropp 2011, doi:10.1137/090771806, algorithm 4.4.
    """
    rng = np.random.default_rng(seed)
    size = min(rank + _OVERSAMPLE, min(matrix.shape))
    basis, _ = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], size)))
    for _ in range(_POWER):
        basis, _ = np.linalg.qr(matrix.conj().T @ basis)
        basis, _ = np.linalg.qr(matrix @ basis)
    u, s, vh = _exact(basis.conj().T @ matrix)
    return basis @ u, s, vh
