"""Which values a rank holds its own part of, and never needs whole.

A value that one loop joins along an index and later loops read along it, block by block, stays
where it was made, if each rank has one and the same block in all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tncompiler.distributed.stages import Common, Level, Slices, Stage


@dataclass(frozen=True, slots=True)
class Shard:
    """An axis of so many positions in blocks of `width`, of which rank r holds block r."""

    axis: int
    size: int
    width: int

    def bounds(self, rank: int) -> tuple[int, int]:
        """The first position of a rank, and the one after its last; torch.chunk cuts alike."""
        start = min(rank * self.width, self.size)
        return start, min(start + self.width, self.size)


def held_in_parts(
    stages: Sequence[Stage],
    outputs: Collection[str],
    given: Mapping[str, Shard],
    wanted: Collection[str],
    world: int,
) -> dict[str, Shard]:
    """The values that ranks hold in parts, with how.

    ``outputs``: of the program; ``given``: arguments that come in parts; ``wanted``: outputs that
    may leave in parts.
    """
    found = dict(given)
    for number, stage in enumerate(stages):
        if not isinstance(stage, Slices) or not deals_one_each(stage, world):
            continue
        for result in stage.results:
            name, axis = result.value.name, result.joined
            if axis is None or (name in outputs and name not in wanted):
                continue
            shard = shard_of(stage.levels[0], axis)
            if all(reads_in_parts(later, name, shard, world) for later in stages[number + 1 :]):
                found[name] = shard
    return found


def deals_one_each(slices: Slices, world: int) -> bool:
    """Whether a rank has one slice at most, and the outermost loop is all there is."""
    return len(slices.levels) == 1 and 0 < slices.count <= world


def shard_of(level: Level, axis: int) -> Shard:
    return Shard(axis, level.size, level.loop.width)


def reads_in_parts(stage: Stage, name: str, shard: Shard, world: int) -> bool:
    """Whether a stage needs of a value no more than each rank's part; true if it reads none."""
    if isinstance(stage, Common):
        return all(argument.value.name != name for argument in stage.program.arguments)
    level = stage.levels[0]
    axes = [
        axis
        for operand, axis in zip(level.operands, level.loop.sliced, strict=True)
        if operand == name
    ]
    fits = deals_one_each(stage, world) and shard_of(level, shard.axis) == shard
    return not axes or (fits and all(axis == shard.axis for axis in axes))
