"""TT-SVD over groups of axes: what TT and TTMatrix share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tncompiler.formats.format import Bond, Cut
from tncompiler.formats.svd import Truncation, truncated_svd
from tncompiler.ir.index import Index


def train_bonds(groups: Sequence[Sequence[Index]]) -> tuple[Bond, ...]:
    """A bond between each two neighbours, carrying at most what either side has."""
    sizes = [[index.size for index in group] for group in groups]
    known = all(isinstance(size, int) for group in sizes for size in group)
    bonds = []
    for k in range(1, len(groups)):
        left = prod(size for group in sizes[:k] for size in group)
        right = prod(size for group in sizes[k:] for size in group)
        bonds.append(Bond(f"r{k}", min(int(left), int(right)) if known else None))
    return tuple(bonds)


def train_cuts(groups: Sequence[Sequence[int]], ranks: Sequence[int]) -> list[Cut]:
    """The cut at each bond: axes of the groups before it."""
    return [
        Cut(tuple(axis for group in groups[: k + 1] for axis in group), rank)
        for k, rank in enumerate(ranks)
    ]


def tt_svd(
    weight: np.ndarray,
    groups: Sequence[Sequence[int]],
    ranks: Sequence[int],
    tail: float,
    seed: int,
) -> tuple[list[np.ndarray], list[int], float]:
    """Cores (left, *group, right) of a train over groups of axes, their ranks, an error bound.

    The error is at most the root of the sum of squared tails (Oseledets 2011,
    doi:10.1137/090752286, theorem 2.2); each of n - 1 truncations may leave tail / sqrt(n - 1).
    Singular values are shared evenly among the cores, so that all have one scale.
    """
    order = [axis for group in groups for axis in group]
    shapes = [tuple(weight.shape[axis] for axis in group) for group in groups]
    rest = weight.transpose(order).reshape(1, -1)
    share = tail / max(len(groups) - 1, 1) ** 0.5
    cores, found, squares = [], [], 0.0
    for k, shape in enumerate(shapes[:-1]):
        matrix = rest.reshape(rest.shape[0] * prod(shape), -1)
        u, s, vh, dropped = truncated_svd(matrix, Truncation(ranks[k], share), seed)
        cores.append(u.reshape(-1, *shape, len(s)))
        rest = s[:, None] * vh
        found.append(len(s))
        squares += dropped**2
    cores.append(rest.reshape(-1, *shapes[-1], 1))
    return balanced(cores), found, squares**0.5


def balanced(cores: list[np.ndarray]) -> list[np.ndarray]:
    """The cores scaled to one root mean square, their product the same."""
    scales = [float(np.sqrt(np.mean(np.abs(core) ** 2))) for core in cores]
    if not all(scales):
        return cores
    common = float(np.exp(np.mean(np.log(scales))))
    return [core * (common / scale) for core, scale in zip(cores, scales, strict=True)]


def named_cores(cores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """G1, G2, …; the first and the last without their outer bond of size 1."""
    inner = [cores[0][0], *cores[1:]]
    inner[-1] = inner[-1][..., 0]
    return {f"G{k}": core for k, core in enumerate(inner, start=1)}
