"""What no network of some ranks can undercut, and what was promised, as relative errors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from tncompiler.formats.format import Cut, Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.svd import singular_values
from tncompiler.formats.whitening import Whitening


def lower_bound(
    format: Format, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], white: Whitening
) -> float | None:
    """The largest tail of all cuts, relative; None where the format has no cuts.

    Where moments join input modes on both sides of a cut, the tail counts with the root of their
    least eigenvalue.
    """
    cuts = list(format.cuts(modes, ranks))
    if not cuts:
        return None
    whole = [cut for cut in cuts if white.moments is None or not _divides_inputs(cut, modes)]
    rooted = white.times_root(weight) if whole else weight
    tails = [_tail(rooted, cut) for cut in whole]
    divided = [cut for cut in cuts if cut not in whole]
    if divided:
        tails.append(white.smallest() * max(_tail(weight, cut) for cut in divided))
    return max(tails) / (white.norm(weight) or 1.0)


def error_bound(factored: Factored, weight: np.ndarray, white: Whitening) -> float | None:
    """The bound that a decomposition gives, relative; None if it gives none."""
    factor = white.largest() if factored.bound is not None else None
    if factored.bound is None or factor is None:
        return None
    return factor * factored.bound / (white.norm(weight) or 1.0)


def _divides_inputs(cut: Cut, modes: Modes) -> bool:
    ins = range(len(modes.ins))
    sides = {k in cut.modes for k in ins}
    return len(sides) > 1 or any(k in cut.batch for k in ins)


def unfold(weight: np.ndarray, cut: Cut) -> np.ndarray:
    """The matrices of a cut, (batch, one side, other side)."""
    rest = [k for k in range(weight.ndim) if k not in cut.modes and k not in cut.batch]
    rows = prod(weight.shape[k] for k in cut.modes)
    count = prod(weight.shape[k] for k in cut.batch)
    return weight.transpose([*cut.batch, *cut.modes, *rest]).reshape(count, rows, -1)


def _tail(weight: np.ndarray, cut: Cut) -> float:
    """The norm of what is beyond the cut's rank, in all matrices of its batch."""
    stack = unfold(weight, cut)
    if cut.rank >= min(stack.shape[1:]):
        return 0.0
    return float(np.linalg.norm([singular_values(matrix)[cut.rank :] for matrix in stack]))
