"""How a program goes with one of its indices cut over ranks, derived from the indices of its steps.

In: a scheduled program. Out: for each index by which it can be cut, where its arguments and outputs
are cut (an output index), which outputs are partial sums (an index that is summed), and the program
of one rank's part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tncompiler.distributed.linear import degrees_of
from tncompiler.ir.passes.slicing import Axis, linked_axes, slice_index
from tncompiler.ir.program import Loop, Pick, Program, Value

Links = Mapping[Axis, Axis]
EXACT = ("bool",)  # sums of parts are not the whole


@dataclass(frozen=True, slots=True)
class Sharding:
    """One index cut over ranks.

    ``arguments``, ``outputs``: for each the axis along which it is cut, None where it is whole.
    ``partial``: for each output, whether ranks have partial sums of it.
    """

    arguments: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    partial: tuple[bool, ...]


def shardings_of(
    program: Program, alike: Mapping[str, str] = MappingProxyType({})
) -> tuple[Sharding, ...]:
    """One for each index of the arguments by which the program can be cut.

    ``alike``: values that are cut as others are: gradients, as what they are gradients by.
    """
    links = _tied(linked_axes(program), program, alike)
    roots = dict.fromkeys(
        links[argument.value.name, axis]
        for argument in program.arguments
        for axis in range(len(argument.value.shape))
    )
    found = (_sharding(program, root, links) for root in roots)
    return tuple(one for one in found if one is not None)


def _sharding(program: Program, root: Axis, links: Links) -> Sharding | None:
    """None where a step needs all positions at once, or what follows a sum does not add up."""
    carried = _carried(root, links)
    looped = slice_index(program, root, 1, links=links)
    made = [s for s in looped.steps if isinstance(s.op, Loop) and s.out.name not in program.values]
    if len(made) != 1 or any(len(axes) > 1 for axes in carried.values()):
        return None
    (loop,) = made
    picks = [s for s in looped.steps if isinstance(s.op, Pick) and s.operands == (loop.out.name,)]
    outside = [step for step in looped.steps if step is not loop and step not in picks]
    if any(name in carried for step in outside for name in (*step.operands, step.out.name)):
        return None
    sums = {pick.out.name for pick in picks if pick.out.name not in carried}
    degrees = degrees_of(looped, sums)
    partial = tuple(degrees.get(name, 0) == 1 for name in program.outputs)
    summed = [name for name, is_sum in zip(program.outputs, partial, strict=True) if is_sum]
    if any(degrees.get(name, 0) not in (0, 1) for name in program.outputs):
        return None
    if any(looped.values[name].dtype in EXACT for name in summed):
        return None
    axes = {name: own[0] for name, own in carried.items()}
    return Sharding(
        arguments=tuple(axes.get(argument.value.name) for argument in program.arguments),
        outputs=tuple(axes.get(name) for name in program.outputs),
        partial=partial,
    )


def _tied(links: Links, program: Program, alike: Mapping[str, str]) -> Links:
    """The links, with axes of values that are cut alike linked as well."""
    order = {axis: number for number, axis in enumerate(links)}
    tied = dict(links)
    for name, other in alike.items():
        for axis in range(len(program.values[name].shape)):
            first, second = sorted((tied[name, axis], tied[other, axis]), key=order.__getitem__)
            tied = {one: first if root == second else root for one, root in tied.items()}
    return tied


def _carried(root: Axis, links: Links) -> dict[str, list[int]]:
    """The values that have the index, with their axes of it."""
    found: dict[str, list[int]] = {}
    for (name, axis), own in links.items():
        if own == root:
            found.setdefault(name, []).append(axis)
    return found


def part_of(program: Program, lengths: Mapping[Axis, int]) -> Program:
    """The program of a rank that has so many positions of the indices of some axes."""
    links = linked_axes(program)
    known = {links[axis]: length for axis, length in lengths.items()}

    def at(value: Value) -> Value:
        sizes = enumerate(value.shape)
        return replace(
            value, shape=tuple(known.get(links[value.name, axis], size) for axis, size in sizes)
        )

    return replace(
        program,
        arguments=tuple(replace(a, value=at(a.value)) for a in program.arguments),
        steps=tuple(replace(step, out=at(step.out)) for step in program.steps),
    )
