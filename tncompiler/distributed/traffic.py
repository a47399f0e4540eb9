"""What ranks send each other when their slices are done, and how long that takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tncompiler.distributed.link import Link
from tncompiler.distributed.owners import owners_of_results
from tncompiler.distributed.stages import Slices
from tncompiler.planning.memory import nbytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes between so many ranks.

    ``summed``: of results that are added up whole; ``scattered``, ``gathered``: that the busiest
    rank sends or gets of results whose positions have owners.
    """

    world: int
    summed: float = 0.0
    scattered: float = 0.0
    gathered: float = 0.0

    @property
    def sent_bytes(self) -> int:
        """What the busiest rank sends; a sum goes round a ring twice, without its own share."""
        return round(
            2.0 * (self.world - 1) / self.world * self.summed + self.scattered + self.gathered
        )

    def time_us(self, link: Link) -> float:
        """Predicted microseconds, one operation of each kind after the other."""
        exchanged = sum(
            link.exchange_us(size, self.world) for size in (self.scattered, self.gathered)
        )
        return link.sum_us(self.summed, self.world) + exchanged


def traffic_of(slices: Slices, world: int, held: Collection[str] = ()) -> Traffic:
    """What becomes of the results of slices; ``held``: those that stay where they are."""
    if world == 1:
        return Traffic(1)
    owners = owners_of_results(slices, world, held)
    summed = scattered = gathered = 0.0
    for result in slices.results:
        name, size = result.value.name, nbytes(result.value).evaluate({})
        if name in owners:
            of_position = size / max(owners[name].size, 1)
            scattered += of_position * owners[name].scattered
            gathered += of_position * owners[name].gathered
        elif name not in held:
            summed += size
    return Traffic(world, summed, scattered, gathered)
