"""Ranks for a budget, read from the spectra of all cuts instead of from many decompositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tncompiler.formats.bounds import unfold
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.svd import singular_values

_BISECTIONS = 40


def ranks_of_one_tail(
    format: Format,
    tensor: np.ndarray,
    modes: Modes,
    limits: Mapping[str, int],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int] | None:
    """The ranks with which every cut leaves out the same norm, the smallest that `fits` allows.

    None where the format's cuts are not one for each bond, or where no such norm fits.
    Cost: the singular values of each cut, once.
    """
    cuts = [*format.cuts(modes, limits)]
    if len(cuts) != len(limits) or any(cut.batch for cut in cuts):
        return None
    rests = [_rests(unfold(tensor, cut)[0]) for cut in cuts]

    def ranks(tail: float) -> dict[str, int]:
        needed = (int(np.count_nonzero(rest > tail)) for rest in rests)
        pairs = zip(limits.items(), needed, strict=True)
        return {name: max(min(limit, rank), 1) for (name, limit), rank in pairs}

    low, high, best = 0.0, float(np.linalg.norm(tensor)), None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = ranks(middle)
        if fits(found):
            best, high = found, middle
        else:
            low = middle
    return best


def _rests(matrix: np.ndarray) -> np.ndarray:
    """For each rank from 0, the norm of the singular values from there on."""
    squares = np.square(singular_values(matrix))
    rests: np.ndarray = np.sqrt(np.cumsum(squares[::-1])[::-1])
    return rests
