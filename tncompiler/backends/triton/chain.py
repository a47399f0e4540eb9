"""Recognise a chain: one large index is streamed, all else fits on chip.

In: a scheduled program. Out: a `Chain`, the steps that one kernel runs for a few positions of the
streamed index at a time, or Unfit with the reason. Sums over the streamed index are kept in each
program's registers and added up by a second launch, always in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tncompiler.backends.triton.atoms import Atom, Unfit, find_atoms, nominal
from tncompiler.backends.triton.spelling import is_spelled
from tncompiler.ir.dtypes import kind
from tncompiler.ir.program import (
    Cast,
    Contract,
    Literal,
    Map,
    Merge,
    Permute,
    Program,
    Split,
    Step,
    Value,
)

MAX_TILE = 2**15  # elements of one row's largest intermediate that can stay on chip
MAX_RESIDENT = 2**15  # elements of cores, and of their gradients, that can
MAX_MADE = 2**12  # elements that every program makes from cores for itself
MAX_ALIVE = 40 * 2**10  # elements of one row and of the sums beside it that can be alive at once

LEAST_DEPTH, LEAST_SIDE = 4, 2  # of a product that is worth a tl.dot

Flat = tuple[Atom, ...]


@dataclass(frozen=True)
class Chain:
    """One launch.

    ``stream``: the index that programs share out. ``resident``: steps done once by each program,
    ``streamed``: steps done for each few rows, ``reduced``: steps on what a program has summed over
    its rows, linear in it. ``inputs`` are read from memory, ``outputs`` are written row
    by row, ``sums`` are written once by each program. ``low``: the dtype that products round to.
    ``tile``: an index that the chain takes ``width`` positions of at a time, if any.
    """

    program: Program
    atoms: dict[str, tuple[Flat, ...]]
    stream: Atom
    resident: tuple[Step, ...]
    streamed: tuple[Step, ...]
    reduced: tuple[Step, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    sums: tuple[Value, ...]
    low: str | None
    tile: Atom | None = None
    width: int = 1

    def flat(self, name: str) -> Flat:
        """The atoms of a value, axis after axis."""
        return tuple(atom for axis in self.atoms[name] for atom in axis)


def find_chain(program: Program, low: str | None) -> Chain:
    """The chain of a program's streamed steps, whether or not it fits on chip. Raises Unfit."""
    atoms = find_atoms(program)
    chain = _split(program, atoms, _largest_atom(program, atoms), low)
    _check_sizes(chain)
    return chain


def _largest_atom(program: Program, atoms: dict[str, tuple[Flat, ...]]) -> Atom:
    """The index to stream: the largest one of what comes in, or of what was made before."""
    read = {name for step in program.steps for name in step.operands}
    for kinds in (("input", "cotangent"), ("saved",)):
        held = [a.value.name for a in program.arguments if a.kind in kinds]
        found = [atom for name in held if name in read for axis in atoms[name] for atom in axis]
        if found:
            return max(found, key=lambda atom: (_number(atom), -atom.number))
    raise Unfit("there is no input to stream")


def _number(atom: Atom) -> int:
    return nominal(atom.size)


def _split(
    program: Program, atoms: dict[str, tuple[Flat, ...]], stream: Atom, low: str | None
) -> Chain:
    state: dict[str, str] = {}
    for argument in program.arguments:
        state[argument.value.name] = _state_of(argument.value.name, atoms, stream)
    for step in program.steps:
        state[step.out.name] = _step_state(step, state, atoms, stream)
    steps = [s for s in program.steps if state[s.out.name] in ("streamed", "reduced")]
    for step in steps:
        check_step(step, program)
    needed = _resident_needed(program, steps, state)
    resident = tuple(s for s in program.steps if s.out.name in needed)
    chosen = (*resident, *steps)
    made = {step.out.name for step in chosen}
    read = {name for step in chosen for name in step.operands} - made
    outside = {
        name
        for step in program.steps
        if step.out.name not in {s.out.name for s in steps}
        for name in step.operands
    } | set(program.outputs)
    written = [s for s in steps if s.out.name in outside]
    first_sums = {s.out.name for s in steps if state[s.out.name] == "reduced"}
    reduced = tuple(s for s in steps if s.out.name in first_sums and _reads(s, first_sums))
    streamed = tuple(s for s in steps if s not in reduced)
    if not streamed:
        raise Unfit("nothing depends on the streamed index")
    return Chain(
        program,
        atoms,
        stream,
        resident,
        streamed,
        reduced,
        tuple(v for n, v in program.values.items() if n in read and not _is_literal(program, n)),
        tuple(s.out for s in written if state[s.out.name] == "streamed"),
        tuple(s.out for s in written if state[s.out.name] == "reduced"),
        low,
    )


def _reads(step: Step, names: set[str]) -> bool:
    return any(name in names for name in step.operands)


def _is_literal(program: Program, name: str) -> bool:
    step = program.producers.get(name)
    return step is not None and isinstance(step.op, Literal)


def _state_of(name: str, atoms: dict[str, tuple[Flat, ...]], stream: Atom) -> str:
    count = sum(axis.count(stream) for axis in atoms[name])
    if count > 1:
        raise Unfit(f"{name} has the streamed index twice")
    return "streamed" if count else "resident"


def _step_state(
    step: Step, state: dict[str, str], atoms: dict[str, tuple[Flat, ...]], stream: Atom
) -> str:
    """ "resident", "streamed", "reduced", or "after": it is not linear in a sum."""
    before = [state[name] for name in step.operands]
    own = _state_of(step.out.name, atoms, stream)
    if "after" in before:
        return "after"
    if "reduced" in before:
        return "reduced" if _is_linear(step, before) else "after"
    if "streamed" not in before:
        if own == "streamed":
            raise Unfit(f"{step.out.name} has the streamed index of no operand")
        return "resident"
    return own if own == "streamed" else "reduced"


def _is_linear(step: Step, before: list[str]) -> bool:
    """Whether what the step makes of the programs' sums adds up to what it makes of the whole."""
    if renames(step):
        return True
    return isinstance(step.op, Contract) and sorted(before) in (
        ["reduced"],
        ["reduced", "resident"],
    )


def renames(step: Step) -> bool:
    """Whether the step moves or casts elements, and does no more."""
    op = step.op
    if isinstance(op, Contract):
        distinct = len(set(op.output)) == len(op.output)
        return distinct and [sorted(labels) for labels in op.inputs] == [sorted(op.output)]
    return isinstance(op, Permute | Cast | Split | Merge)


def check_step(step: Step, program: Program) -> None:
    """Raises Unfit for a step that does not run on tiles."""
    values = [step.out, *(program.values[name] for name in step.operands)]
    if all(_is_literal(program, name) for name in step.operands):
        raise Unfit(f"{step.out.name} is a number")
    if any(kind(v.dtype) != "float" for v in values):
        raise Unfit(f"{step.out.name} is not real")
    if any(0 in v.shape for v in values):
        raise Unfit(f"{step.out.name} is empty")
    match step.op:
        case Contract(inputs, output):
            distinct = all(len(set(w)) == len(w) for w in (*inputs, output))
            if len(inputs) not in (1, 2) or not distinct:
                raise Unfit(f"{step.out.name} takes a diagonal")
            if not set(output) <= {k for w in inputs for k in w}:
                raise Unfit(f"{step.out.name} is broadcast")
        case Map(name):
            if not is_spelled(name, tuple(v.dtype for v in values)):
                raise Unfit(f"no kernel writes {name}")
        case Cast() | Permute() | Split() | Merge():
            return
        case _:
            raise Unfit(f"{step.out.name} = {step.op.text()} does not run on tiles")


def _resident_needed(program: Program, steps: list[Step], state: dict[str, str]) -> set[str]:
    """Resident values that the steps need, as far back as they can be made on chip."""
    needed: set[str] = set()
    pending = [name for step in steps for name in step.operands if state[name] == "resident"]
    while pending:
        name = pending.pop()
        step = program.producers.get(name)
        if name in needed or step is None or isinstance(step.op, Literal):
            continue
        try:
            check_step(step, program)
        except Unfit:
            continue  # made before, and read from memory
        if not renames(step) and _padded(step.out) > MAX_MADE:
            continue
        needed.add(name)
        pending += step.operands
    return needed


def row_elements(chain: Chain, name: str) -> int:
    """Elements that a value takes on chip for one row, padded."""
    return math.prod(
        chain.width if a == chain.tile else pad(_number(a))
        for a in chain.flat(name)
        if a != chain.stream
    )


def _padded(value: Value) -> int:
    """Elements of a value on chip; of one with a free size more than any chip has."""
    return math.prod(pad(size) if isinstance(size, int) else 2**32 for size in value.shape)


def pad(size: int) -> int:
    """The power of two that holds a size."""
    return 1 << max(size - 1, 0).bit_length()


def _check_sizes(chain: Chain) -> None:
    made = [step.out for step in (*chain.resident, *chain.streamed, *chain.reduced)]
    for value in (*chain.inputs, *made):
        for atom in chain.flat(value.name):
            if atom != chain.stream and not isinstance(atom.size, int):
                raise Unfit(f"the size {atom.name} is free beside the streamed index")


def check_fit(chain: Chain) -> None:
    """Raises Unfit where the chain cannot be on chip at a row a time."""
    largest = max((row_elements(chain, s.out.name), s.out.name) for s in chain.streamed)
    if largest[0] > MAX_TILE:
        raise Unfit(f"one row of {largest[1]} is {largest[0]} elements, over {MAX_TILE}")
    cores = [v.name for v in chain.inputs if chain.stream not in chain.flat(v.name)]
    resident = sum(row_elements(chain, name) for name in cores)
    sums = sum(row_elements(chain, value.name) for value in chain.sums)
    if resident > MAX_RESIDENT or sums > MAX_RESIDENT:
        raise Unfit(f"cores take {resident} elements and their gradients {sums}")
    alive = sum(pressure(chain))
    if alive > MAX_ALIVE:
        raise Unfit(f"a row and the sums beside it take {alive} elements, over {MAX_ALIVE}")


def pressure(chain: Chain) -> tuple[int, int]:
    """Elements that are alive on chip at once: of the tiles of one row, and of all sums.

    A renaming is the tile that it renames, and a tile lives until the last step that reads it.
    """
    source: dict[str, str] = {}
    last: dict[str, int] = {}
    for position, step in enumerate(chain.streamed):
        own = step.operands[0] if renames(step) else step.out.name
        source[step.out.name] = source.get(own, own)
        for name in (*step.operands, step.out.name):
            last[source.get(name, name)] = position
    streamed = {source.get(name, name) for name in last if chain.stream in chain.flat(name)}
    first: dict[str, int] = {}
    for position, step in enumerate(chain.streamed):
        for name in (*step.operands, step.out.name):
            first.setdefault(source.get(name, name), position)
    alive = [
        sum(row_elements(chain, n) for n in streamed if first[n] <= k <= last[n])
        for k in range(len(chain.streamed))
    ]
    made = [s.out.name for s in chain.streamed if chain.stream not in chain.flat(s.out.name)]
    return max(alive), sum(row_elements(chain, name) for name in made)
