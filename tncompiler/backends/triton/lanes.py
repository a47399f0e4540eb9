"""Sums that triton before 3.9 takes over the wrong lanes: found in what it compiled.

A reshape can leave the elements of an axis to lanes that are not next to one another: lanes 0, 1, 3
and 4 of a warp, say. Those compilers add up as many lanes as there are from the first on, here 0 to
3, and say nothing. Generated kernels sum one axis at a time, which avoids it; a configuration in
which it happens nevertheless must not run.

In: triton's intermediate text of a kernel ("ttgir"). Out: whether its sums are right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

Bases = Sequence[Sequence[int]]  # for each bit of a lane's (or warp's) number, how far it moves

_LINEAR = re.compile(
    r"^(#\w+) = #ttg\.linear<\{.*lane = (\[.*?\]), warp = (\[.*?\]), block", re.MULTILINE
)
_REDUCE = re.compile(
    r'"tt\.reduce"\(.*?<\{axis = (\d+) : i32\}>.*?\}\) : \(tensor<[^,]*, (#[^\n]*?)>[,)]', re.DOTALL
)
_SLICE = re.compile(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>")


def sums_rightly(ttgir: str, version: str) -> bool:
    """Whether a kernel's sums, compiled by this version of triton, add up the right lanes."""
    if tuple(map(int, version.split(".")[:2])) >= (3, 9):
        return True
    return all(_is_run(bases, axis) for bases, axis in _reductions(ttgir))


def _reductions(ttgir: str) -> Iterator[tuple[Bases, int]]:
    """The lanes, and the warps, of each operand that is reduced, and along which axis."""
    linear = {name: (lane, warp) for name, lane, warp in _LINEAR.findall(ttgir)}
    for axis, layout in _REDUCE.findall(ttgir):
        dropped = []
        while found := _SLICE.fullmatch(layout):
            dropped.append(int(found[1]))
            layout = found[2]
        for text in linear.get(layout, ()):  # the elements of other layouts are in runs
            bases: list[list[int]] = json.loads(text)
            for dim in reversed(dropped):
                bases = [[*base[:dim], *base[dim + 1 :]] for base in bases]
            yield bases, int(axis)


def _is_run(bases: Bases, axis: int) -> bool:
    """Whether the bits that move along an axis are next to one another."""
    moving = [bit for bit, base in enumerate(bases) if base[axis]]
    return not moving or moving[-1] - moving[0] + 1 == len(moving)
