"""Which positions of a joined result belong to which rank: sums are scattered, then gathered.

A loop that joins its results along an output index gives each rank the positions of its own slices.
Ranks send only what another one owns; the owner adds it up in ascending order of ranks, and sends
the sum to all others. That is half of what adding up whole results sends, where slices lie well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tncompiler.distributed.dealing import deal
from tncompiler.distributed.shards import Shard
from tncompiler.distributed.stages import Slices


@dataclass(frozen=True)
class Owners:
    """By rank, positions along ``axis``.

    ``made``: those that its slices add to; ``owned``: those of which it has the sum. Owned ranges
    cover the axis, and no two overlap.
    """

    axis: int
    made: tuple[range, ...]
    owned: tuple[range, ...]

    @cached_property
    def size(self) -> int:
        """The positions of the axis."""
        return sum(map(len, self.owned))

    def sends(self, rank: int, owner: int) -> range:
        """The positions that a rank adds to and another one owns."""
        made, owned = self.made[rank], self.owned[owner]
        start = max(made.start, owned.start)
        return range(start, max(start, min(made.stop, owned.stop)))

    @cached_property
    def scattered(self) -> int:
        """The positions that the busiest rank sends, or gets, so that owners have their sums."""
        made = [part for part in self.made if part]
        starts = np.sort(np.array([part.start for part in made], np.int64))
        stops = np.sort(np.array([part.stop for part in made], np.int64))

        def before(position: int) -> int:
            """The positions before one, counted for each rank that adds to them."""
            begun = starts[: np.searchsorted(starts, position)]
            ended = stops[: np.searchsorted(stops, position)]
            return int((position - begun).sum() - (position - ended).sum())

        busiest = 0
        for rank, (part, owned) in enumerate(zip(self.made, self.owned, strict=True)):
            own = len(self.sends(rank, rank))
            got = before(owned.stop) - before(owned.start) if owned else 0
            busiest = max(busiest, len(part) - own, got - own)
        return busiest

    @property
    def gathered(self) -> int:
        """The positions that the busiest rank sends, or gets, so that all have the whole."""
        others = len(self.owned) - 1
        least, most = min(map(len, self.owned)), max(map(len, self.owned))
        return max(others * most, self.size - least) if others else 0


def owners_of(slices: Slices, axis: int, world: int) -> Owners | None:
    """Who owns what of a result joined along an axis; None where adding it up whole sends no more.

    Blocks belong to the rank that has their first slice, or positions are dealt out evenly, as few
    blocks of many slices need.
    """
    made = _made(slices, world)
    ways = [
        Owners(axis, made, owned) for owned in (_by_slices(slices, world), _evenly(slices, world))
    ]
    best = min(ways, key=lambda way: way.scattered + way.gathered)
    whole = 2.0 * (world - 1) / world * best.size
    return best if best.scattered + best.gathered < whole else None


def owners_of_results(slices: Slices, world: int, held: Collection[str] = ()) -> dict[str, Owners]:
    """Those of the results of which no whole is added up, by name; ``held``: stay in parts."""
    joined = {result.value.name: result.joined for result in slices.results}
    axes = {name: axis for name, axis in joined.items() if axis is not None and name not in held}
    found = {axis: owners_of(slices, axis, world) for axis in set(axes.values())}
    return {name: own for name, axis in axes.items() if (own := found[axis]) is not None}


def _made(slices: Slices, world: int) -> tuple[range, ...]:
    """The positions that each rank's slices add to."""
    level, inner = slices.levels[0], _inner(slices)
    found = []
    for share in deal(slices, world):
        first, last = share.start // inner, (share.stop - 1) // inner
        found.append(range(level.bounds(first)[0], level.bounds(last)[1]) if share else range(0))
    return tuple(found)


def _by_slices(slices: Slices, world: int) -> tuple[range, ...]:
    """The blocks whose first slice each rank has."""
    level, inner = slices.levels[0], _inner(slices)

    def edge(number: int) -> int:
        """Where the first block begins whose first slice is that number, or a later one."""
        return min(-(-number // inner) * level.loop.width, level.size)

    return tuple(range(edge(share.start), edge(share.stop)) for share in deal(slices, world))


def _evenly(slices: Slices, world: int) -> tuple[range, ...]:
    size = slices.levels[0].size
    return tuple(range(size * rank // world, size * (rank + 1) // world) for rank in range(world))


def _inner(slices: Slices) -> int:
    """How many slices a block of the outermost loop has."""
    return max(prod(level.count for level in slices.levels[1:]), 1)


def owners_of_shard(shard: Shard, world: int) -> Owners:
    """Every rank has its own block, and nothing of another one."""
    parts = tuple(range(*shard.bounds(rank)) for rank in range(world))
    return Owners(shard.axis, parts, parts)
