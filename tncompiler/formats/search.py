"""Decomposition of a weight to a rank, a tolerance or a budget: what is the same for all formats.

In: a weight as users hold it. Out: a Decomposition. Pads, weights by activations, searches the rank
where a format cannot find it itself, and measures the error on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.evaluate import evaluate
from tncompiler.formats.format import Factored, Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.svd import singular_values
from tncompiler.formats.whitening import Whitening
from tncompiler.ir.errors import FormatError

_BISECTIONS = 24


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
    array, dtype = checked_weight(weight, modes)
    if rank is not None:
        format = replace(format, rank=rank)
    white = Whitening.of(format, modes, moments)
    tensor = white.apply(array)
    if budget is not None:
        factored = _within_budget(format, tensor, modes, budget, seed)
    elif tolerance is not None:
        factored = _within_tolerance(format, tensor, modes, tolerance, seed)
    else:
        factored = format.factor(tensor, modes, _integers(format, modes), 0.0, seed)
    return _finished(format, factored, array, tensor, modes, white, dtype)


def _check_goal(rank: Any, tolerance: Any, budget: Any) -> None:
    given = [
        n
        for n, v in (("rank", rank), ("tolerance", tolerance), ("budget", budget))
        if v is not None
    ]
    if len(given) > 1:
        raise FormatError(f"{' and '.join(given)} are both given", fix="give one of them")
    for name, value in (("tolerance", tolerance), ("budget", budget)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not value > 0
        ):
            raise FormatError(f"{name} is {value!r}", fix="give a number above 0")
    if tolerance is not None and tolerance >= 1:
        raise FormatError(f"tolerance is {tolerance!r}", fix="give a relative error below 1")


def checked_weight(weight: Any, modes: Modes) -> tuple[np.ndarray, np.dtype[Any]]:
    """The weight in double precision with one axis a mode, padded; and its own dtype.

    Raises: FormatError for shapes that do not fit, other dtypes than floats, NaN and infinity.
    """
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        low = str(weight.dtype) == "torch.bfloat16"
        weight = (weight.float() if low else weight).numpy()
    array = np.asarray(weight)
    if array.dtype.kind not in "fc":
        raise FormatError(f"the weight has dtype {array.dtype}", fix="convert it to a float dtype")
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise FormatError(
            f"{bad} of the weight's {array.size} numbers are NaN or infinite",
            fix="repair the weight first: a decomposition would spread them to all cores",
        )
    double = np.complex128 if array.dtype.kind == "c" else np.float64
    numbers = modes.numbers()
    if array.shape == numbers:
        return array.astype(double), array.dtype
    rows, columns = prod(numbers[: len(modes.ins)]), prod(numbers[len(modes.ins) :])
    fits = array.ndim == 2 and 0 < array.shape[0] <= rows and 0 < array.shape[1] <= columns
    if not fits:
        turned = array.ndim == 2 and array.shape[::-1] == (rows, columns)
        raise FormatError(
            f"the weight has shape {array.shape}, but the modes {numbers[: len(modes.ins)]} and "
            f"{numbers[len(modes.ins) :]} make ({rows}, {columns})",
            fix="transpose it: inputs come first" if turned else "choose modes that multiply out",
        )
    padded = np.zeros((rows, columns), double)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded.reshape(numbers), array.dtype


def _integers(format: Format, modes: Modes) -> dict[str, int]:
    sizes = format.sizes(modes)
    symbols = [name for name, size in sizes.items() if not isinstance(size, int)]
    if symbols:
        raise FormatError(f"the rank of bond {symbols[0]} is a symbol", fix="give a number")
    return {name: int(size) for name, size in sizes.items()}


# ---------------------------------------------------------------------------- goals


def full_ranks(format: Format, modes: Modes) -> dict[str, int]:
    """The most that each bond can carry."""
    largest = prod(modes.numbers())
    return {bond.name: bond.capacity or largest for bond in format.bonds(modes)}


def _within_tolerance(
    format: Format, tensor: np.ndarray, modes: Modes, tolerance: float, seed: int
) -> Factored:
    """The smallest ranks found whose relative error is below `tolerance`."""
    norm = float(np.linalg.norm(tensor))
    limits = full_ranks(format, modes)
    if format.direct:
        return format.factor(tensor, modes, limits, tolerance * norm, seed)

    def attempt(rank: int) -> tuple[Factored, float]:
        ranks = {name: min(rank, limit) for name, limit in limits.items()}
        factored = format.factor(tensor, modes, ranks, 0.0, seed)
        return factored, error_of(format, factored, tensor, modes)

    low, high = 0, 1
    best, error = attempt(high)
    while error > tolerance * norm and high < max(limits.values()):
        low, high = high, min(2 * high, max(limits.values()))
        best, error = attempt(high)
    if error > tolerance * norm:
        raise FormatError(
            f"{type(format).__name__} reaches a relative error of {error / norm:.3g}, not "
            f"{tolerance:.3g}",
            fix="allow a larger tolerance, or choose a format that is exact at full rank",
        )
    while high - low > 1:
        middle = (low + high) // 2
        found, error = attempt(middle)
        if error <= tolerance * norm:
            best, high = found, middle
        else:
            low = middle
    return best


def _within_budget(
    format: Format, tensor: np.ndarray, modes: Modes, budget: float, seed: int
) -> Factored:
    """The best ranks found with at most so many parameters."""
    allowed = int(budget * tensor.size) if budget < 1 else int(budget)
    limits = full_ranks(format, modes)
    rank = _largest(
        lambda r: _count(format, modes, _capped(limits, r)) <= allowed,
        max(limits.values(), default=0),
    )
    if rank == 0 and limits:
        least = _count(format, modes, _capped(limits, 1))
        raise FormatError(
            f"{type(format).__name__} has {least} parameters at rank 1, more than {allowed}",
            fix=f"allow a budget of {least}, or choose more modes",
        )
    uniform = format.factor(tensor, modes, _capped(limits, rank), 0.0, seed)
    if not format.direct:
        return uniform
    fitted = _fitted(format, tensor, modes, allowed, limits, seed)
    if fitted is None:
        return uniform
    errors = [error_of(format, f, tensor, modes) for f in (uniform, fitted)]
    return fitted if errors[1] < errors[0] else uniform


def _fitted(
    format: Format,
    tensor: np.ndarray,
    modes: Modes,
    allowed: int,
    limits: dict[str, int],
    seed: int,
) -> Factored | None:
    """Ranks as a common tolerance chooses them, the smallest tolerance that meets the budget."""
    norm = float(np.linalg.norm(tensor))
    low, high, best = 0.0, 1.0, None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = format.factor(tensor, modes, limits, middle * norm, seed)
        if sum(core.size for core in found.cores.values()) <= allowed:
            best, high = found, middle
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


def _count(format: Format, modes: Modes, ranks: dict[str, int]) -> int:
    return int(format.with_ranks(ranks).parameters(modes.ins, modes.outs))


# ---------------------------------------------------------------------------- what comes out


def error_of(format: Format, factored: Factored, tensor: np.ndarray, modes: Modes) -> float:
    """The norm of weight minus network."""
    network = format.with_ranks(factored.ranks).network(modes.ins, modes.outs)
    return float(np.linalg.norm(tensor - evaluate(network, factored.cores)))


def _finished(
    format: Format,
    factored: Factored,
    array: np.ndarray,
    tensor: np.ndarray,
    modes: Modes,
    white: Whitening,
    dtype: np.dtype[Any],
) -> Decomposition:
    chosen = format.with_ranks(factored.ranks) if factored.ranks else format
    network = chosen.network(modes.ins, modes.outs)
    norm = float(np.linalg.norm(tensor)) or 1.0
    cores = {name: core.astype(dtype) for name, core in white.undo(factored.cores).items()}
    wide = {name: core.astype(array.dtype) for name, core in cores.items()}
    difference = array - evaluate(network, wide)
    plain = float(np.linalg.norm(difference)) / (float(np.linalg.norm(array)) or 1.0)
    return Decomposition(
        format=chosen,
        network=network,
        cores=cores,
        error=white.relative_error(difference, array),
        error_bound=None if factored.bound is None else factored.bound / norm,
        lower_bound=lower_bound(chosen, tensor, modes, factored.ranks),
        plain_error=plain,
    )


def lower_bound(
    format: Format, tensor: np.ndarray, modes: Modes, ranks: Mapping[str, int]
) -> float | None:
    """What no weight with these ranks can undercut, relative: the largest tail of all cuts."""
    norm = float(np.linalg.norm(tensor)) or 1.0
    tails = []
    for cut in format.cuts(modes, ranks):
        rest = [k for k in range(tensor.ndim) if k not in cut.modes]
        rows = prod(tensor.shape[k] for k in cut.modes)
        matrix = tensor.transpose([*cut.modes, *rest]).reshape(rows, -1)
        values = singular_values(matrix) if cut.rank < min(matrix.shape) else np.zeros(0)
        tails.append(float(np.linalg.norm(values[cut.rank :])) / norm)
    return max(tails, default=None)
