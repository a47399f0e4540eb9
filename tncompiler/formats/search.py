"""Decomposition of a weight to a rank, a tolerance or a budget: what is the same for all formats.

In: a weight as users hold it. Out: a Decomposition. Pads, weights by activations, searches the rank
where a format cannot find it itself, and measures the error on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from numbers import Real
from typing import Any

import numpy as np

from tncompiler.formats.bounds import error_bound, lower_bound
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.evaluate import evaluate
from tncompiler.formats.format import Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.refine import refined
from tncompiler.formats.spectra import ranks_of_one_tail
from tncompiler.formats.weights import Weight
from tncompiler.formats.whitening import Whitening
from tncompiler.ir.errors import BudgetError, FormatError
from tncompiler.ir.expressions import Expr

_BISECTIONS = 24
_WIDENINGS = 5  # of a tail that all truncations share, since together they rarely reach it
_LARGE = 2_000_000  # elements from which a tail is not widened
_BISECTED = 200_000  # elements up to which ranks for a budget are also looked for by decomposing


def decompose(
    format: Format,
    weight: Any,
    modes: Modes,
    rank: Any,
    tolerance: float | None,
    budget: float | None,
    moments: Any,
    seed: int,
) -> Decomposition:
    """See Format.decompose."""
    _check_goal(rank, tolerance, budget)
    given = Weight.of(weight, modes)
    if rank is not None:
        format = replace(format, rank=rank)
    real = given.array.dtype.kind == "f"
    white = Whitening.of(format, modes, moments, given.inputs, real)
    task = _Task(format, modes, given, white, white.apply(given.array), seed)
    if budget is not None:
        factored = _within_budget(task, budget)
    elif tolerance is not None:
        factored = _within_tolerance(task, tolerance)
    else:
        factored = task.factor(_integers(format, modes))
    return _finished(task, factored)


@dataclass(frozen=True)
class _Task:
    """A weight to decompose: ``given``, and ``tensor``, the same in the bases of ``white``."""

    format: Format
    modes: Modes
    given: Weight
    white: Whitening
    tensor: np.ndarray
    seed: int

    def factor(self, ranks: Mapping[str, int], tail: float = 0.0) -> Factored:
        """Cores in the weight's own bases."""
        found = self.format.factor(self.tensor, self.modes, ranks, tail, self.seed)
        own = replace(found, cores=self.white.undo(found.cores))
        return own if self.white.exact else self._improved(own)

    def _improved(self, found: Factored) -> Factored:
        """Where the bases only approximate the moments: fitted to the moments themselves.

        The start is what was found, or what is found without moments if that serves better.
        """
        array, ranks = self.given.array, found.ranks
        plain = self.format.factor(array, self.modes, ranks, 0.0, self.seed)
        starts = [found, replace(found, cores=plain.cores)][: 1 + (plain.ranks == ranks)]
        best = min(starts, key=self.error)
        cores = refined(self.network(ranks), best.cores, array, self.white)
        return min(best, replace(found, cores=cores), key=self.error)

    def network(self, ranks: Mapping[str, int]) -> Expr:
        return self.format.with_ranks(ranks).network(self.modes.ins, self.modes.outs)

    def difference(self, cores: dict[str, np.ndarray], ranks: Mapping[str, int]) -> np.ndarray:
        """The weight minus the network of these cores."""
        rest: np.ndarray = self.given.array - evaluate(self.network(ranks), cores)
        return rest

    def relative(self, difference: np.ndarray) -> float:
        return self.white.norm(difference) / (self.white.norm(self.given.array) or 1.0)

    def error(self, factored: Factored) -> float:
        """The relative error, in terms of outputs where moments were given."""
        return self.relative(self.difference(factored.cores, factored.ranks))

    def count(self, ranks: Mapping[str, int]) -> int:
        format = self.format.with_ranks(ranks)
        return int(format.parameters(self.modes.ins, self.modes.outs))


def _check_goal(rank: Any, tolerance: Any, budget: Any) -> None:
    goals = {"rank": rank, "tolerance": tolerance, "budget": budget}
    given = [name for name, value in goals.items() if value is not None]
    if len(given) > 1:
        raise FormatError(f"{' and '.join(given)} are both given", fix="give one of them")
    for name in ("tolerance", "budget"):
        value = goals[name]
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf
        ):
            raise FormatError(f"{name} is {value!r}", fix="give a number above 0")
    if tolerance is not None and tolerance >= 1:
        raise FormatError(f"tolerance is {tolerance!r}", fix="give a relative error below 1")


def _integers(format: Format, modes: Modes) -> dict[str, int]:
    sizes = format.sizes(modes)
    symbols = [name for name, size in sizes.items() if not isinstance(size, int)]
    if symbols:
        raise FormatError(f"the rank of bond {symbols[0]} is a symbol", fix="give a number")
    return {name: int(size) for name, size in sizes.items()}


# ---------------------------------------------------------------------------- tolerance


def full_ranks(format: Format, modes: Modes) -> dict[str, int]:
    """The most that each bond can carry."""
    largest = prod(modes.numbers())
    return {bond.name: bond.capacity or largest for bond in format.bonds(modes)}


def _within_tolerance(task: _Task, tolerance: float) -> Factored:
    """The smallest ranks found whose relative error is below `tolerance`."""
    limits = full_ranks(task.format, task.modes)
    if limits and task.format.direct:
        return _by_tail(task, limits, tolerance)
    return _by_rank(task, limits, tolerance)


def _by_tail(task: _Task, limits: Mapping[str, int], tolerance: float) -> Factored:
    """The largest tail with which a direct format keeps the tolerance."""
    tail = tolerance * float(np.linalg.norm(task.tensor))
    best = task.factor(limits, tail)
    while task.error(best) > tolerance:  # moments that do not factor: the bases only approximate
        tail /= 2
        if tail < 1e-14 * float(np.linalg.norm(task.tensor)):
            raise _unreached(task, task.error(task.factor(limits)), tolerance)
        best = task.factor(limits, tail)
    if task.tensor.size > _LARGE or (task.white.exact and len(limits) < 2):
        return best
    low, high = tail, tail * len(limits) ** 0.5
    if not task.white.exact:  # cores fitted to the moments are far better than the tail says
        high = float(np.linalg.norm(task.tensor))
    for _ in range(_WIDENINGS):
        middle = (low + high) / 2
        found = task.factor(limits, middle)
        if task.error(found) > tolerance:
            high = middle
            continue
        low = middle
        best = min(best, found, key=_stored)
    return best


def _stored(factored: Factored) -> int:
    return sum(core.size for core in factored.cores.values())


def _by_rank(task: _Task, limits: Mapping[str, int], tolerance: float) -> Factored:
    """The smallest common rank that bisection finds."""
    most = max(limits.values(), default=1)
    low, high = 0, 1
    best = task.factor(_capped(limits, high))
    while (error := task.error(best)) > tolerance:
        if high == most:
            raise _unreached(task, error, tolerance)
        low, high = high, min(2 * high, most)
        best = task.factor(_capped(limits, high))
    while high - low > 1:
        middle = (low + high) // 2
        found = task.factor(_capped(limits, middle))
        if task.error(found) <= tolerance:
            best, high = found, middle
        else:
            low = middle
    return best


def _unreached(task: _Task, error: float, tolerance: float) -> FormatError:
    return FormatError(
        f"{type(task.format).__name__} reaches a relative error of {error:.3g}, not "
        f"{tolerance:.3g}",
        fix="allow a larger tolerance, or choose a format that is exact at full rank",
    )


# ---------------------------------------------------------------------------- budget


def _within_budget(task: _Task, budget: float) -> Factored:
    """The best ranks found with at most so many parameters."""
    fraction = budget < 1 or (isinstance(budget, float) and budget == 1)
    allowed = int(budget * task.given.size) if fraction else int(budget)
    limits = full_ranks(task.format, task.modes)
    rank = _largest(
        lambda r: task.count(_capped(limits, r)) <= allowed, max(limits.values(), default=1)
    )
    if rank == 0:
        least = task.count(_capped(limits, 1))
        raise BudgetError(
            f"{type(task.format).__name__} has {least} parameters at rank 1, more than {allowed}",
            fix=f"allow a budget of {least}, or choose more modes",
        )
    candidates = [task.factor(_capped(limits, rank))]
    if task.format.direct and len(limits) > 1:
        ranks = ranks_of_one_tail(
            task.format, task.tensor, task.modes, limits, lambda r: task.count(r) <= allowed
        )
        candidates += [] if ranks is None else [task.factor(ranks)]
        if task.tensor.size <= _BISECTED:
            candidates += _fitted(task, allowed, limits)
    return min(candidates, key=task.error)


def _fitted(task: _Task, allowed: int, limits: Mapping[str, int]) -> list[Factored]:
    """Ranks as a common tolerance chooses them, the smallest tolerance that meets the budget."""
    norm = float(np.linalg.norm(task.tensor))
    low, high, best = 0.0, 1.0, []
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = task.factor(limits, middle * norm)
        if _stored(found) <= allowed:
            best, high = [found], middle
        else:
            low = middle
        if high - low < 1e-3 * high:
            break
    return best


def _capped(limits: Mapping[str, int], rank: int) -> dict[str, int]:
    return {name: max(min(rank, limit), 1) for name, limit in limits.items()}


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, 0 if 1 does not; fitting is monotone."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# ---------------------------------------------------------------------------- what comes out


def _finished(task: _Task, factored: Factored) -> Decomposition:
    ranks, array, dtype = factored.ranks, task.given.array, task.given.dtype
    chosen = task.format.with_ranks(ranks) if ranks else task.format
    network = chosen.network(task.modes.ins, task.modes.outs)
    exact = factored.cores
    cores = {name: core.astype(dtype) for name, core in exact.items()}
    wide = {name: core.astype(array.dtype) for name, core in cores.items()}
    difference = task.difference(wide, ranks)
    bound = error_bound(factored, array, task.white)
    if bound is not None:  # rounding to the weight's dtype comes on top
        bound += task.relative(difference - task.difference(exact, ranks))
    return Decomposition(
        format=chosen,
        network=network,
        cores=cores,
        error=task.relative(difference),
        error_bound=bound,
        lower_bound=lower_bound(chosen, array, task.modes, ranks, task.white),
        plain_error=float(np.linalg.norm(difference)) / (float(np.linalg.norm(array)) or 1.0),
        is_weighted=task.white.moments is not None,
    )
