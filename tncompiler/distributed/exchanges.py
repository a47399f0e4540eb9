"""Sums to those who own them, and whole results to everyone: what ranks do at the end of slices.

Every rank calls these with tensors alike; all tensors go in one operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tncompiler.backends.torch.memory import empty
from tncompiler.distributed.owners import Owners
from tncompiler.distributed.sums import at
from tncompiler.distributed.team import Team


def scatter(team: Team, results: Sequence[Tensor], owners: Sequence[Owners]) -> list[Tensor]:
    """The sums of the positions that this rank owns, added up in ascending order of ranks.

    ``results``: the positions that this rank has made.
    """
    me, ranks = team.rank, range(team.world)
    if not results:
        return []
    if not any(own.scattered for own in owners):
        return [*results]
    sent = [
        [
            _positions(x, own, own.sends(me, o), own.made[me].start)
            for x, own in zip(results, owners, strict=True)
        ]
        for o in ranks
    ]
    sums = [
        x.new_zeros(_shape(x, own, own.owned[me])) for x, own in zip(results, owners, strict=True)
    ]
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
    if all(len({*map(len, own.owned)}) == 1 for own in owners):
        return [_joined(team.gather(x), own.axis) for x, own in zip(parts, owners, strict=True)]
    me, ranks = team.rank, range(team.world)
    nothing = [_positions(x, own, range(0)) for x, own in zip(parts, owners, strict=True)]
    shapes = [
        [
            _shape(x, own, range(0) if r == me else own.owned[r])
            for x, own in zip(parts, owners, strict=True)
        ]
        for r in ranks
    ]
    found = team.exchange([nothing if r == me else parts for r in ranks], shapes)
    found[me] = [*parts]
    return [torch.cat([found[r][k] for r in ranks], dim=own.axis) for k, own in enumerate(owners)]


def _joined(stacked: Tensor, axis: int) -> Tensor:
    """Parts along the first axis, joined along one that they have."""
    if axis == 0:
        return stacked.flatten(0, 1)
    count, *shape = stacked.shape
    shape[axis] *= count
    whole = empty(shape, stacked.dtype, stacked.device)
    return torch.cat(stacked.unbind(), dim=axis, out=whole)


def _positions(array: Tensor, own: Owners, positions: range, first: int = 0) -> Tensor:
    """Some positions of an array that begins at one of them."""
    part: Tensor = at(array, ((own.axis, positions.start - first, positions.stop - first),))
    return part


def _shape(like: Tensor, own: Owners, positions: range) -> tuple[int, ...]:
    return (*like.shape[: own.axis], len(positions), *like.shape[own.axis + 1 :])
