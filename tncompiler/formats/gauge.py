"""Gauges: other cores for the same weight.

On a bond that joins two cores any invertible matrix may stand with its inverse; on one that joins
more, only scales whose product is one. The canonical gauge is the one in which what either side of
a bond spans is orthogonal: each channel then counts for its singular value, largest first.

The sides are known by their Gram matrices, found by passing messages between cores: exact where the
bonds form a tree (Vidal 2003, doi:10.1103/PhysRevLett.91.147902), the fixed point of belief
propagation where they form loops (Tindall & Fishman 2023, doi:10.21468/SciPostPhys.15.6.222).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import networkx as nx
import numpy as np

from tncompiler.formats.balance import balanced_by_name
from tncompiler.formats.bonds import Cores, End, NetworkBond, Sites
from tncompiler.formats.conditioning import term_gram
from tncompiler.ir.errors import FormatError, ShapeError, UnknownIndex

Messages = dict[tuple[int, str], np.ndarray]  # (site, bond) → Gram matrix over the bond

_SWEEPS = 500  # around loops; a tree is done in as many as it is wide
_SETTLED = 1e-12
_FLOOR = 1e-15  # of the largest eigenvalue: below it there is only rounding


@dataclass(frozen=True)
class Spectrum:
    """What the channels of a bond carry, largest first.

    ``values``: where the bond cuts the network in two, the singular values of the weight between
    its sides (``exact``); in a loop, those between its surroundings as belief propagation knows
    them, scaled to the weight's norm; on a bond of three cores or more (``is_sum``), the norms of
    the terms that the weight is a sum of. The same in every gauge.
    """

    bond: str
    values: np.ndarray
    exact: bool
    is_sum: bool = False

    @property
    def weights(self) -> np.ndarray:
        """The share of each channel in the squares."""
        squares: np.ndarray = np.square(self.values)
        return np.asarray(squares / (squares.sum() or 1.0))

    @property
    def entropy(self) -> float:
        """The entanglement entropy -Σ p log p of the shares, in nats: 0 for one channel."""
        shares = self.weights[self.weights > 0]
        return float(-(shares * np.log(shares)).sum()) + 0.0

    @property
    def effective_rank(self) -> float:
        """exp(entropy): how many equal channels would carry as much."""
        return float(np.exp(self.entropy))

    def discarded(self, rank: int) -> float:
        """The share of the norm beyond the first `rank` channels: what cutting there loses."""
        return float(np.sqrt(self.weights[rank:].sum()))


# ---------------------------------------------------------------------------- spectra


def spectra(sites: Sites, cores: Cores) -> dict[str, Spectrum]:
    """The spectrum of every bond.

    Cost: each core with itself, once a sweep; no dense weight is made.
    """
    arrays, messages = sites.arrays(cores), gram_messages(sites, cores)
    made = {}
    for bond in sites.bonds:
        if not bond.joins_two:
            values = _term_norms(sites, arrays, bond)
            made[bond.name] = Spectrum(bond.name, np.sort(values)[::-1], True, True)
            continue
        left, right = (messages[end.site, bond.name] for end in bond.ends)
        values = np.linalg.svd(_root(left).T @ _root(right), compute_uv=False)
        norm = np.sqrt(max(term_gram(sites.inputs, sites.output, arrays, bond.label).sum().real, 0))
        scale = norm / (np.linalg.norm(values) or 1.0)
        made[bond.name] = Spectrum(bond.name, values * scale, sites.is_tree)
    return made


def _term_norms(sites: Sites, arrays: list[np.ndarray], bond: NetworkBond) -> np.ndarray:
    gram = term_gram(sites.inputs, sites.output, arrays, bond.label)
    norms: np.ndarray = np.sqrt(np.maximum(np.diag(gram).real, 0.0))
    return norms


def gram_messages(sites: Sites, cores: Cores) -> Messages:
    """For each end of a bond, the Gram matrix of all that lies on that side, of trace one."""
    arrays = sites.arrays(cores)
    ends = [(end, bond) for held in sites.held.values() for bond, end in held]
    messages = {(end.site, bond.name): _uniform(bond.size) for end, bond in ends}
    for sweep in range(_SWEEPS):
        moved = 0.0
        for end, bond in ends if sweep % 2 == 0 else ends[::-1]:
            new = _message(sites, arrays, messages, end)
            moved = max(moved, float(np.abs(new - messages[end.site, bond.name]).max(initial=0.0)))
            messages[end.site, bond.name] = new
        if moved <= _SETTLED:
            break
    return messages


def _uniform(size: int) -> np.ndarray:
    return np.eye(size) / size


def _message(sites: Sites, arrays: list[np.ndarray], messages: Messages, end: End) -> np.ndarray:
    """A core with its conjugate, joined by what comes in along its other bonds."""
    plain = carried = arrays[end.site]
    for other, own in sites.held[end.site]:
        if own.axis != end.axis:
            carried = _along(carried, own.axis, incoming(messages, other, own).conj())
    gram = _unfolded(plain, end.axis) @ _unfolded(carried, end.axis).conj().T
    gram = (gram + gram.conj().T) / 2
    trace = float(np.trace(gram).real)
    return gram / trace if trace > 0 else _uniform(len(gram))


def incoming(messages: Messages, bond: NetworkBond, end: End) -> np.ndarray:
    """What reaches an end of a bond from the others: their product, pair by pair of channels."""
    others = [messages[other.site, bond.name] for other in bond.ends if other.site != end.site]
    return np.asarray(prod(others[1:], start=others[0])) if others else _uniform(bond.size)


def _along(array: np.ndarray, axis: int, matrix: np.ndarray) -> np.ndarray:
    """The array with an axis multiplied by a matrix: new k = Σ old j · matrix[k, j]."""
    moved: np.ndarray = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return moved


def _unfolded(array: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _root(gram: np.ndarray) -> np.ndarray:
    """R with R Rᴴ = gram, invertible: directions that hold only rounding are held at its level."""
    values, vectors = np.linalg.eigh(gram)
    floor = _FLOOR * max(float(values[-1]), np.finfo(np.float64).tiny)
    root: np.ndarray = vectors * np.sqrt(np.maximum(values, floor))
    return root


# ---------------------------------------------------------------------------- changing the gauge


def canonical_cores(sites: Sites, cores: Cores, center: str | None = None) -> dict[str, Any]:
    """Cores of the same weight whose channels are ordered, orthogonal and of fixed sign.

    ``center``: the core that takes the singular values of the bonds around it, all others being
    isometries towards it; None shares them evenly, all cores being of one scale. Bonds of more than
    two cores cannot be made orthogonal: their terms are ordered by norm and shared evenly. In
    double precision.
    Raises: FormatError where a bond cannot be moved (cores that are shared or constant),
    UnknownIndex for a center that is no core.
    """
    steps = distances(sites, center)
    made: dict[str, np.ndarray] = dict(zip(sites.tensors, sites.arrays(cores), strict=True))
    for bond in sites.bonds:
        if not sites.movable(bond.name).joins_two:
            made = _ordered_terms(sites, made, bond)
    messages = gram_messages(sites, made)
    for bond in sites.bonds:
        if bond.joins_two:
            near = [1.0 if steps is None else float(steps[end.site]) for end in bond.ends]
            share = 0.5 if near[0] == near[1] else float(near[0] < near[1])
            pair = _orthogonal_pair(messages, bond, share)
            made = _moved(made, bond, *pair)
    signed = _with_fixed_signs(sites, made)
    own = {name: core for name, core in signed.items() if name not in sites.constants}
    return balanced_by_name(own) if steps is None else _unit_isometries(sites, own, steps)


def _unit_isometries(sites: Sites, cores: Cores, steps: Mapping[int, int]) -> dict[str, np.ndarray]:
    """Cores whose scale is moved towards the center, from the farthest on."""
    made = dict(cores)
    pairs = [bond for bond in sites.bonds if bond.joins_two]
    for bond in sorted(pairs, key=lambda b: -max(steps[end.site] for end in b.ends)):
        near, far = sorted(bond.ends, key=lambda end: steps[end.site])
        if steps[near.site] < steps[far.site]:
            scale = float(np.linalg.norm(_unfolded(made[far.core], far.axis), axis=1).max()) or 1.0
            made[far.core], made[near.core] = made[far.core] / scale, made[near.core] * scale
    return made


def distances(sites: Sites, center: str | None) -> dict[int, int] | None:
    """How far each site is from a core; None without one. Raises UnknownIndex for unknown cores."""
    if center is None:
        return None
    if center not in sites.tensors:
        raise UnknownIndex(
            f"there is no core {center!r:.40}",
            where=repr(sites.network),
            fix=f"name one of {', '.join(dict.fromkeys(sites.tensors))}",
        )
    known = nx.single_source_shortest_path_length(sites.joined, sites.tensors.index(center))
    return {site: known.get(site, len(sites.joined)) for site in range(len(sites.tensors))}


def _orthogonal_pair(
    messages: Messages, bond: NetworkBond, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices for both ends, inverse to one another, that make the bond canonical.

    ``share``: the power of the singular values that the first end takes.
    """
    first, second = (_root(messages[end.site, bond.name]) for end in bond.ends)
    u, values, vh = np.linalg.svd(first.T @ second)
    left = np.linalg.solve(first.T, u)
    right = np.linalg.solve(second.T, vh.T)
    return (left * values**share).T, (right * values ** (1 - share)).T


def _moved(
    cores: Mapping[str, np.ndarray], bond: NetworkBond, left: np.ndarray, right: np.ndarray
) -> dict[str, np.ndarray]:
    """The cores with a matrix on each end of a bond."""
    made = dict(cores)
    for end, matrix in zip(bond.ends, (left, right), strict=True):
        made[end.core] = _along(made[end.core], end.axis, matrix)
    return made


def _with_fixed_signs(sites: Sites, cores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cores with the signs that make channels comparable: the largest number in the slice of
    one end is positive. Bonds are taken from the rim of the network inwards, so that this end has
    no bond of another sign left."""
    made, left = dict(cores), [bond for bond in sites.bonds if bond.joins_two]
    while left:
        ways = ((bond, end) for bond in left for end in bond.ends)
        bond, end = min(ways, key=lambda way: sum(b in left for b, _ in sites.held[way[1].site]))
        phase = _phases(_unfolded(made[end.core], end.axis))
        signs = {end: np.diag(1 / phase)}
        made = _moved(made, bond, *(signs.get(each, np.diag(phase)) for each in bond.ends))
        left.remove(bond)
    return made


def _phases(rows: np.ndarray) -> np.ndarray:
    """The sign, or phase, of the largest number of each row."""
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(1)]
    return np.where(largest == 0, 1.0, largest / np.where(largest == 0, 1.0, np.abs(largest)))


def _ordered_terms(
    sites: Sites, cores: Mapping[str, np.ndarray], bond: NetworkBond
) -> dict[str, np.ndarray]:
    """Terms by falling norm, with slices of one norm on all ends; the last end takes the signs."""
    order = np.argsort(-_term_norms(sites, sites.arrays(cores), bond), kind="stable")
    made = dict(cores)
    rows = {end: _unfolded(made[end.core], end.axis)[order] for end in bond.ends}
    norms = {end: np.linalg.norm(rows[end], axis=1) for end in bond.ends}
    alive = np.prod([*norms.values()], axis=0) > 0
    common = np.exp(np.mean([np.log(np.where(alive, n, 1.0)) for n in norms.values()], axis=0))
    signs: Any = 1.0
    for end in bond.ends:
        factor = np.where(alive, common / np.where(alive, norms[end], 1.0), 1.0)
        phase = signs if end is bond.ends[-1] else _phases(rows[end])
        signs = signs / phase
        scaled = rows[end] * (factor / phase)[:, None]
        shape = np.moveaxis(made[end.core], end.axis, 0).shape
        made[end.core] = np.moveaxis(scaled.reshape(shape), 0, end.axis)
    return made


def regauged_cores(sites: Sites, cores: Cores, name: str, matrix: Any) -> dict[str, Any]:
    """Cores of the same weight, with a matrix on a bond's first end, its inverse on the second.

    ``matrix``: (channels, channels), old channels in rows; or (channels,), the scales of a diagonal
    one, which a bond of more than two cores allows as well.
    Raises: ShapeError for other shapes and for matrices without an inverse; FormatError for bonds
    on which no such matrix can stand.
    """
    bond, held = sites.movable(name), in_matrix(matrix)
    if held.shape not in ((bond.size,), (bond.size, bond.size)):
        raise ShapeError(
            f"a gauge of shape {held.shape} does not fit the {bond.size} channels of {bond.name!r}",
            fix=f"give ({bond.size}, {bond.size}), or ({bond.size},) for scales",
        )
    if held.ndim == 1:
        held = np.diag(held)
    elif not bond.joins_two:
        raise FormatError(
            f"bond {bond.name!r} joins {len(bond.ends)} cores: only scales can move along it",
            fix=f"give {bond.size} scales",
        )
    is_finite = np.isfinite(held).all()
    if len(bond.ends) < 2 or not is_finite or not np.isfinite(np.linalg.cond(held)):
        raise ShapeError(
            f"the gauge on bond {bond.name!r} has no inverse there", fix="give an invertible one"
        )
    a, b = bond.ends[:2]
    made = {**cores, a.core: _along(cores[a.core], a.axis, held.T)}
    return {**made, b.core: _along(made[b.core], b.axis, np.linalg.inv(held))}


def in_matrix(matrix: Any) -> np.ndarray:
    """A gauge as an array in double precision. Raises ShapeError for what is none."""
    try:
        held = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix)
        return held.astype(np.complex128 if held.dtype.kind == "c" else np.float64)
    except (ValueError, TypeError):
        raise ShapeError("the gauge is no matrix of numbers", fix="give an array") from None
