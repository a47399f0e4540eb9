"""The slices of one rank: a nest of loops carried out from one slice to another.

Every loop of the nest adds up what its blocks make. A loop that a rank does only a part of gives
what that part comes to; the steps after it are such that the sum over ranks is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tncompiler.backends.torch.memory import empty
from tncompiler.distributed.shards import Shard
from tncompiler.distributed.stages import Level, Result, Slices, resolve
from tncompiler.distributed.sums import Total, added_in, at
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import evaluate

Arrays = dict[str, Any]
Run = Callable[..., tuple[Any, ...]]
Load = Callable[[Program, str], Run]  # a program and what its function is called → the function
Sums = list[list[Total]]  # by depth of the loop


class Nest:
    """A nest of loops, with the functions of its bodies; one for all calls.

    ``own``: values that the rank is given its part of, or keeps its part of. ``made``: results of
    the outermost loop, with the only positions along their joined axis that the rank adds to.
    """

    def __init__(
        self,
        slices: Slices,
        load: Load,
        own: Mapping[str, Shard],
        made: Mapping[str, range],
        rank: int,
    ) -> None:
        self.levels, self.load, self.own, self.rank = slices.levels, load, own, rank
        self.made = made
        counts = [level.count for level in self.levels]
        self.inner = [prod(counts[depth + 1 :]) for depth in range(len(counts))]
        self._functions: dict[tuple[object, ...], Run] = {}

    def empty(self, depth: int, sizes: Mapping[Any, int], device: torch.device) -> list[Total]:
        """Sums of nothing, for the results of a loop."""
        made = []
        for result in self.levels[depth].results:
            shape = [evaluate(size, sizes) for size in result.value.shape]
            name = result.value.name
            if depth == 0 and (shard := self.own.get(name)) is not None:
                start, stop = shard.bounds(self.rank)
                shape[shard.axis] = stop - start
            if depth == 0 and name in self.made and result.joined is not None:
                shape[result.joined] = len(self.made[name])
            dtype = added_in(getattr(torch, result.value.dtype))
            made.append(Total(empty(shape, dtype, device).zero_(), result.joined))
        return made

    def function(self, program: Program, lengths: tuple[int, ...], entry: str) -> Run:
        """A program for blocks as long as these; the last of a loop may be shorter."""
        key = (id(program), lengths)
        if key not in self._functions:
            self._functions[key] = self.load(resolve(program, self.sizes(lengths)), entry)
        return self._functions[key]

    def sizes(self, lengths: Sequence[int]) -> dict[Any, int]:
        """The sizes of blocks that are symbols."""
        blocks = [level.loop.block for level in self.levels[: len(lengths)]]
        pairs = zip(blocks, lengths, strict=True)
        return {block: length for block, length in pairs if not isinstance(block, int)}


class Looping:
    """One run of a nest over some of its slices.

    ``before``, ``after``: called with the number of each slice as it begins, and what all slices
    before it come to, and with its results as it ends. ``sums``: what to go on from.
    """

    def __init__(
        self,
        nest: Nest,
        numbers: range,
        device: torch.device,
        is_numpy: bool,
        before: Callable[[int, Sums], None],
        after: Callable[[int, Sequence[Tensor]], None],
        sums: Sums | None = None,
    ) -> None:
        self.nest, self.numbers, self.device, self.is_numpy = nest, numbers, device, is_numpy
        self.before, self.after = before, after
        self.resumes = sums is not None
        self.sums: Sums = [nest.empty(0, {}, device)] if sums is None else sums

    def run(self, known: Mapping[str, Any]) -> None:
        """Carry out the slices; what they come to is `sums[0]` then."""
        if self.numbers:
            self._loop(0, known, self.numbers, (), 0)

    def _loop(
        self,
        depth: int,
        known: Mapping[str, Any],
        numbers: range,
        lengths: tuple[int, ...],
        base: int,
    ) -> None:
        """Some of the slices of one loop; ``base``: how many slices come before it."""
        nest, level = self.nest, self.nest.levels[depth]
        each = nest.inner[depth]
        for block in range(numbers.start // each, -(-numbers.stop // each)):
            bounds = level.bounds(block)
            here = (*lengths, bounds[1] - bounds[0])
            parts = self._parts(depth, known, bounds)
            first = block * each
            if depth + 1 == len(nest.levels):
                results = self._slice(base + block, level, here, parts)
            else:
                inner = range(max(numbers.start - first, 0), min(numbers.stop - first, each))
                results = self._block(depth, here, parts, inner, base + first)
            self._add(depth, results, bounds)

    def _slice(
        self, number: int, level: Level, lengths: tuple[int, ...], parts: Sequence[Any]
    ) -> list[Tensor]:
        """One block of the innermost loop."""
        self.before(number, self.sums)
        made = self.nest.function(level.loop.body, lengths, "slice")(*parts)
        results = [as_tensor(made[result.output]) for result in level.results]
        self.after(number, results)
        return results

    def _block(
        self,
        depth: int,
        lengths: tuple[int, ...],
        parts: Sequence[Any],
        numbers: range,
        base: int,
    ) -> list[Tensor]:
        """One block of a loop that has another one inside, of which some slices are to be done."""
        nest, level = self.nest, self.nest.levels[depth]
        body = level.loop.body
        known = {a.value.name: x for a, x in zip(body.arguments, parts, strict=True)}
        self._know(level.before, known, lengths, "before")
        if not (self.resumes and len(self.sums) > depth + 1):
            self.sums.append(nest.empty(depth + 1, nest.sizes(lengths), self.device))
        self.resumes = self.resumes and len(self.sums) > depth + 2
        self._loop(depth + 1, known, numbers, lengths, base)
        totals = zip(nest.levels[depth + 1].results, self.sums.pop(), strict=True)
        known.update({result.value.name: self._leave(result, total) for result, total in totals})
        self._know(level.after, known, lengths, "after")
        return [as_tensor(known[body.outputs[result.output]]) for result in level.results]

    def _know(
        self, program: Program | None, known: Arrays, lengths: tuple[int, ...], entry: str
    ) -> None:
        """Add what a program makes to what is known."""
        if program is not None:
            given = (known[argument.value.name] for argument in program.arguments)
            made = self.nest.function(program, lengths, entry)(*given)
            known.update(zip(program.outputs, made, strict=True))

    def _leave(self, result: Result, total: Total) -> Any:
        """What a loop made, as the array that the next steps read."""
        value = total.value().to(getattr(torch, result.value.dtype))
        return value.numpy() if self.is_numpy else value

    def _parts(self, depth: int, known: Mapping[str, Any], bounds: tuple[int, int]) -> list[Any]:
        """What a loop reads of a block: views, or what this rank has of it alone."""
        level, parts = self.nest.levels[depth], []
        for name, axis in zip(level.operands, level.loop.sliced, strict=True):
            array = known[name]
            if axis is not None and not (depth == 0 and self._is_part(name, array)):
                array = at(array, ((axis, *bounds),))
            parts.append(array)
        return parts

    def _is_part(self, name: str, array: Any) -> bool:
        """Whether a value is this rank's part already, and was not gathered."""
        shard = self.nest.own.get(name)
        return shard is not None and array.shape[shard.axis] < shard.size

    def _add(self, depth: int, results: Sequence[Tensor], bounds: tuple[int, int]) -> None:
        """Add the results of a block to those of its loop."""
        pairs = zip(self.nest.levels[depth].results, results, strict=True)
        for (result, part), total in zip(pairs, self.sums[depth], strict=True):
            name, (start, stop) = result.value.name, bounds
            first = self.nest.made[name].start if depth == 0 and name in self.nest.made else 0
            alone = depth == 0 and name in self.nest.own
            total.add(part, None if alone else (start - first, stop - first))


def as_tensor(array: Any) -> Tensor:
    """An array of either library as a tensor, without a copy where that can be."""
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)
