"""TT-SVD over groups of axes: what TT and TTMatrix share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tncompiler.formats.balance import balanced
from tncompiler.formats.format import Bond, Cut
from tncompiler.formats.svd import TailBudget, project
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
    doi:10.1137/090752286, theorem 2.2); with a tail, that is at most `tail`.
    Singular values are shared evenly among the cores, so that all have one scale.
    """
    order = [axis for group in groups for axis in group]
    sizes = [[weight.shape[axis] for axis in group] for group in groups]
    rest = weight.transpose(order)[None]
    budget = TailBudget(tail, len(groups) - 1)
    cores = []
    for own, rank in zip(sizes[:-1], ranks, strict=True):
        core, rest = project(rest, range(1 + len(own)), rank, budget, seed)
        cores.append(core)
    cores.append(rest[..., None])
    return balanced(cores), [core.shape[-1] for core in cores[:-1]], budget.dropped


def named_cores(cores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """G1, G2, …; the first and the last without their outer bond of size 1."""
    inner = [cores[0][0], *cores[1:]]
    inner[-1] = inner[-1][..., 0]
    return {f"G{k}": core for k, core in enumerate(inner, start=1)}
