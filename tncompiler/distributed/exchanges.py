"""Sums to those who own them, and whole results to everyone: what ranks do at the end of slices.

Every rank calls these with tensors alike; all tensors go in one operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tncompiler.distributed.owners import Owners
from tncompiler.distributed.sums import at
from tncompiler.distributed.team import Team


def scatter(team: Team, results: Sequence[Tensor], owners: Sequence[Owners]) -> list[Tensor]:
    """The sums of the positions that this rank owns, added up in ascending order of ranks."""
    me, ranks = team.rank, range(team.world)
    if not results:
        return []
    mine = [_positions(x, own, own.owned[me]) for x, own in zip(results, owners, strict=True)]
    if not any(own.scattered for own in owners):
        return mine
    sent = [
        [_positions(x, own, own.sends(me, o)) for x, own in zip(results, owners, strict=True)]
        for o in ranks
    ]
    sums = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in mine]
    shapes = [
        [_shape(x, own, own.sends(r, me)) for x, own in zip(results, owners, strict=True)]
        for r in ranks
    ]
    for rank, parts in enumerate(team.exchange(sent, shapes)):
        for total, part, own in zip(sums, parts, owners, strict=True):
            found = own.sends(rank, me)
            first = own.owned[me].start
            at(total, ((own.axis, found.start - first, found.stop - first),)).add_(part)
    return sums


def gather(team: Team, parts: Sequence[Tensor], owners: Sequence[Owners]) -> list[Tensor]:
    """Whole results, of the positions that each rank owns."""
    ranks = range(team.world)
    if not parts:
        return []
    shapes = [
        [_shape(x, own, own.owned[r]) for x, own in zip(parts, owners, strict=True)] for r in ranks
    ]
    found = team.exchange([parts] * team.world, shapes)
    return [torch.cat([found[r][k] for r in ranks], dim=own.axis) for k, own in enumerate(owners)]


def _positions(whole: Tensor, own: Owners, positions: range) -> Tensor:
    part: Tensor = at(whole, ((own.axis, positions.start, positions.stop),))
    return part


def _shape(like: Tensor, own: Owners, positions: range) -> tuple[int, ...]:
    return (*like.shape[: own.axis], len(positions), *like.shape[own.axis + 1 :])
