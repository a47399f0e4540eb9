"""Cut a program into blocks that stay in a core's cache and are shared out among threads.

In: a scheduled program, integers for its free sizes, a library's rates, a number of lanes. Out:
the program with a loop over the index for which the predicted time is least, or as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tncompiler.ir.passes.slicing import Axis, linked_axes
from tncompiler.ir.program import Loop, Program, Step
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.memory import nbytes
from tncompiler.planning.rates import Rates
from tncompiler.planning.slicing import Cut, apply_cuts, numeric
from tncompiler.planning.timing import lanes_us, threaded_us

FROM_US = 250.0  # a program that takes less is not worth handing to another thread
GAIN = 0.9  # of the predicted time, at most, for which a program is cut
_INDICES = 2  # that are considered: those that most memory goes along
_HALVINGS = 4  # of the blocks: their widths are a lane's share, a half of it, …
_MOST_STEPS = 400  # in a program that is looked at: cutting one takes a while


@dataclass(frozen=True, slots=True)
class Tiled:
    """A program, perhaps with a loop, and its predicted microseconds."""

    program: Program
    time_us: float


def tile_program(
    program: Program,
    nominal: Binding,
    rates: Rates,
    lanes: int,
    start_us: float,
    threads: int = 1,
) -> Tiled:
    """The fastest of the program and what cutting it along one of its indices gives.

    ``start_us``: what handing blocks to other threads takes. ``threads``: that NumPy's products
    have where the program stays whole; beside blocks they have one.
    """
    numbers, alone = numeric(program, nominal), rates.one_thread
    whole = threaded_us(numbers, {}, rates, threads, products_only=True)
    has_loops = any(isinstance(step.op, Loop) for step in program.steps)
    if has_loops or not FROM_US < whole < math.inf or len(program.steps) > _MOST_STEPS:
        return Tiled(program, whole)
    tried = (
        (lanes_us(in_lanes(apply_cuts(numbers, (cut,)), lanes), {}, alone, start_us), cut)
        for cut in _cuts(numbers, lanes)
    )
    best, cut = min(tried, default=(math.inf, None))
    if cut is None or best > GAIN * whole:
        return Tiled(program, whole)
    return Tiled(in_lanes(apply_cuts(program, (cut,)), lanes), best)


def in_lanes(program: Program, lanes: int) -> Program:
    """The program with its outermost loops shared by so many threads."""

    def shared(step: Step) -> Step:
        op = step.op
        return replace(step, op=replace(op, lanes=lanes)) if isinstance(op, Loop) else step

    return program.with_steps(map(shared, program.steps))


def _cuts(numbers: Program, lanes: int) -> Iterator[Cut]:
    """What is worth a look: blocks of the indices along which most memory goes."""
    carried: dict[Axis, int] = {}
    for (name, axis), root in linked_axes(numbers).items():
        value = numbers.values[name]
        if value.shape[axis] != 1:
            carried[root] = carried.get(root, 0) + nbytes(value).evaluate({})
    for name, axis in sorted(carried, key=lambda root: -carried[root])[:_INDICES]:
        width = -(-evaluate(numbers.values[name].shape[axis], {}) // lanes)
        for _ in range(_HALVINGS):
            if width > 1:
                yield Cut(name, axis, width)
            width = -(-width // 2)
