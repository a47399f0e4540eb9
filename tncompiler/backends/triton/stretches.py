"""Cut a program into stretches of steps: each a chain, or pairwise launches.

In: a scheduled program. Out: actions. Cuts are made where little is alive that would have to go
through memory, and around steps that no chain can take; of all ways to cut there, the one with the
least predicted time is found stretch by stretch, from the start.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tncompiler.backends.triton.actions import Launch, read_by
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import find_bundle
from tncompiler.backends.triton.chain import check_step, renames
from tncompiler.backends.triton.fuse import fuse
from tncompiler.backends.triton.predict import known_sizes, predicted_us
from tncompiler.backends.triton.traffic import nbytes
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Argument, Literal, Program, Step

MOST_CUTS = 256  # places where a program may be cut
LONGEST = 4  # parts between two such places that a stretch may have

Actions = Sequence[Launch]
Refused = frozenset[str]  # digests of the chains that have turned out to spill
NONE: Refused = frozenset()


def chain_actions(program: Program, low: str | None, refused: Refused = NONE) -> Actions:
    """One chain, what is computed for it before, and what needs its results after. Raises Unfit."""
    bundle = find_bundle(program, low)
    if bundle.digest in refused:
        raise Unfit("every configuration of the chain spills")
    made = tuple(Argument(v, "saved") for v in (*bundle.outputs, *bundle.sums))
    needed = [v.name for v in bundle.inputs if v.name in program.producers]
    rest = Program(
        (*program.arguments, *made),
        tuple(s for s in program.steps if s.out.name not in bundle.steps),
        (*program.outputs, *needed),
        program.equations,
    )
    late, before, after = set(bundle.done), [], []
    for action in fuse(drop_dead_steps(rest), low):
        if late.intersection(read_by(action)):
            late.add(action.out.name)
            after.append(action)
        else:
            before.append(action)
    return [*before, bundle, *after]


def cut_actions(program: Program, low: str | None, refused: Refused = NONE) -> Actions:
    """The actions of the stretches that are together predicted to be the fastest."""
    stretches = _Stretches(_parameters_late(program))
    costs: dict[object, float] = {}  # equal layers have equal stretches, which are tried once

    def cost(start: int, stop: int) -> float:
        stretch = stretches(start, stop)
        key = _structure(stretch)
        if key not in costs:
            costs[key] = predicted_us(_fastest(stretch, low, refused), stretch)
        return costs[key]

    cuts = _cheapest_cuts(_places(stretches.program), cost)
    chosen = (stretches(start, stop) for start, stop in itertools.pairwise(cuts))
    return [action for stretch in chosen for action in _fastest(stretch, low, refused)]


def _cheapest_cuts(places: Sequence[int], cost: Callable[[int, int], float]) -> list[int]:
    """Of all places the ones, the first and last among them, whose stretches cost least."""
    best = [0.0]
    before = [0]  # the number of the place from which the cheapest stretch leads to each
    for last in range(1, len(places)):
        found = [
            (best[first] + cost(places[first], places[last]), first)
            for first in range(max(last - LONGEST, 0), last)
        ]
        us, first = min(found)
        best.append(us)
        before.append(first)
    cuts = [len(places) - 1]
    while cuts[0]:
        cuts.insert(0, before[cuts[0]])
    return [places[number] for number in cuts]


def _fastest(stretch: Program, low: str | None, refused: Refused) -> Actions:
    """The actions of a stretch: a chain if it is one and that is predicted to be faster."""
    pairwise: Actions = fuse(stretch, low)
    try:
        chained = chain_actions(stretch, low, refused)
    except Unfit:
        return pairwise
    return min((pairwise, chained), key=lambda actions: predicted_us(actions, stretch))


def _structure(program: Program) -> object:
    """The program without its names: equal for the same steps on other values."""
    number = {name: k for k, name in enumerate(program.values)}
    steps = [
        (step.op, step.out.dtype, step.out.shape, *[number[name] for name in step.operands])
        for step in program.steps
    ]
    given = [(a.kind, a.value.dtype, a.value.shape) for a in program.arguments]
    return (*given, *steps, *[number[name] for name in program.outputs])


# ---------------------------------------------------------------------------- where to cut


def _places(program: Program) -> list[int]:
    """Where a program may be cut: positions of steps, its start and end, MOST_CUTS between."""
    able = [_is_able(step, program) for step in program.steps]
    alive = _alive_bytes(program)
    around = [k for k in range(1, len(able)) if able[k - 1] != able[k]]
    fewest = [
        k for k in range(1, len(able)) if alive[k] <= alive[k - 1] and alive[k] < alive[k + 1]
    ]
    chosen = dict.fromkeys(
        [*sorted(around, key=alive.__getitem__), *sorted(fewest, key=alive.__getitem__)]
    )
    return [0, *sorted([*chosen][:MOST_CUTS]), len(able)]


def _is_able(step: Step, program: Program) -> bool:
    """Whether a chain can take the step; numbers go along with anything."""
    try:
        if not isinstance(step.op, Literal):
            check_step(step, program)
    except Unfit:
        return False
    return True


def _alive_bytes(program: Program) -> list[int]:
    """By position, bytes of the values made before it and needed from it on."""
    sizes = known_sizes(program)
    last = {name: k for k, step in enumerate(program.steps) for name in step.operands}
    change = [0] * (len(program.steps) + 2)
    for position, step in enumerate(program.steps):
        if not isinstance(step.op, Literal) and step.out.name in last:
            size = nbytes(step.out, sizes)
            change[position + 1] += size
            change[last[step.out.name] + 1] -= size
    return [*itertools.accumulate(change)]


# ---------------------------------------------------------------------------- a stretch


class _Stretches:
    """Parts of one program; what was made before them is read from memory.

    Numbers, casts and views of arguments are made again, as they cost nothing.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._last = {name: k for k, step in enumerate(program.steps) for name in step.operands}
        self._last.update(dict.fromkeys(program.outputs, len(program.steps)))
        self._given = {argument.value.name: argument for argument in program.arguments}
        self._position = {step.out.name: k for k, step in enumerate(program.steps)}
        self._free: set[str] = set()
        for step in program.steps:
            if self._is_free(step):
                self._free.add(step.out.name)

    def __call__(self, start: int, stop: int) -> Program:
        """The steps from one position to another as a program."""
        program, own = self.program, self.program.steps[start:stop]
        steps = (*self._again(own, start), *own)
        made = {step.out.name for step in steps}
        read = dict.fromkeys(name for step in steps for name in step.operands)
        arguments = [
            self._given.get(name) or Argument(program.values[name], "saved")
            for name in read
            if name not in made
        ]
        results = [s.out.name for s in own if self._last.get(s.out.name, 0) >= stop]
        return drop_dead_steps(Program(tuple(arguments), steps, tuple(results), program.equations))

    def _again(self, steps: Sequence[Step], start: int) -> list[Step]:
        """Earlier steps that these read and that take no launch of their own."""
        wanted: set[int] = set()
        pending = [name for step in steps for name in step.operands]
        while pending:
            name = pending.pop()
            position = self._position.get(name, start)
            if position < start and name in self._free and position not in wanted:
                wanted.add(position)
                pending += self.program.steps[position].operands
        return [self.program.steps[position] for position in sorted(wanted)]

    def _is_free(self, step: Step) -> bool:
        """Numbers, and what only renames or casts an argument."""
        known = (n in self._free or n not in self.program.producers for n in step.operands)
        return isinstance(step.op, Literal) or (renames(step) and all(known))


def _parameters_late(program: Program) -> Program:
    """Steps on parameters alone stand just before the first that reads them."""
    moving = {a.value.name for a in program.arguments if a.kind not in ("param", "constant")}
    held: dict[str, Step] = {}
    placed: list[Step] = []
    for step in program.steps:
        if not moving.intersection(step.operands):
            held[step.out.name] = step
            continue
        moving.add(step.out.name)
        placed += [*_taken(held, step), step]
    return program.with_steps((*placed, *held.values()))


def _taken(held: dict[str, Step], reader: Step) -> list[Step]:
    """The held steps that a step needs, in order; they are held no more."""
    wanted: set[str] = set()
    pending = [*reader.operands]
    while pending:
        name = pending.pop()
        if name in held and name not in wanted:
            wanted.add(name)
            pending += held[name].operands
    return [held.pop(name) for name in [*held] if name in wanted]
