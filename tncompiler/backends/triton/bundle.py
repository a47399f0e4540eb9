"""Ways to run a program's streamed steps in one launch.

In: a scheduled program. Out: a `Bundle`: the chain as a whole, and cut into branches that programs
share out, each making some of the results again from the start; a branch may take an open index a
few positions at a time. All ways make the same values, so which one runs is a matter of what it
compiles to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from tncompiler.backends.triton.atoms import Atom, Unfit
from tncompiler.backends.triton.chain import Chain, check_fit, find_chain, pressure
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Contract, Program, Step, Value
from tncompiler.ir.sizes import same_size

Way = tuple[Chain, ...]

EASY = 2**12  # elements alive on chip that no kernel spills
WIDE_EASY = 2**10  # in 32 bits, which products take apart into three parts
_BRANCHES = (2, 4)
ROOMY = 2**13  # a tile is made so wide


@dataclass(frozen=True)
class Bundle:
    """One launch. ``ways``: from the whole chain to one branch a result; a way's chains run side by
    side. ``inputs``, ``outputs`` and ``sums`` are those of all chains, as `Chain` has them.
    """

    program: Program
    stream: Atom
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    sums: tuple[Value, ...]
    ways: tuple[Way, ...]
    steps: frozenset[str]

    @property
    def done(self) -> frozenset[str]:
        """Names of the values that the launch makes."""
        return frozenset(v.name for v in (*self.outputs, *self.sums))

    @property
    def digest(self) -> str:
        """Of what the launch computes: equal for equal layers, whatever their values are called."""
        values = self.program.values
        made = [step for step in self.program.steps if step.out.name in self.steps]
        steps = [
            repr((s.op, s.out.dtype, s.out.shape, [values[name].shape for name in s.operands]))
            for s in made
        ]
        return blake2b("\n".join(sorted(steps)).encode(), digest_size=8).hexdigest()


def find_bundle(program: Program, low: str | None) -> Bundle:
    """The launch for a program's streamed steps, with the dtype that products round to.

    Raises Unfit, with the reason.
    """
    chain = find_chain(program, low)
    ways = _ways(program, chain)
    if not ways:
        check_fit(chain)
        raise Unfit("no way to cut it fits on chip")
    read = {value.name for way in ways for part in way for value in part.inputs}
    return Bundle(
        program,
        chain.stream,
        tuple(value for value in program.values.values() if value.name in read),
        chain.outputs,
        chain.sums,
        tuple(ways),
        frozenset(step.out.name for step in (*chain.streamed, *chain.reduced)),
    )


def _ways(program: Program, chain: Chain) -> list[Way]:
    """The ways that fit, until one is so small that it cannot spill."""
    found, easy = [], EASY if chain.low else WIDE_EASY
    for way in _cuts(program, chain):
        if _fits(way):
            found.append(way)
            if max(sum(pressure(part)) for part in way) <= easy:
                break
    return found


def _cuts(program: Program, chain: Chain) -> Iterator[Way]:
    """The whole, few branches, and a branch for each result, tiled where it crowds the chip."""
    results = _in_order(chain)
    yield (chain,)
    try:
        for count in _BRANCHES:
            if len(results) > count:
                yield _branches(program, chain, results, count)
        parts = _branches(program, chain, results, len(results))
    except Unfit:
        return  # the whole it is
    tiled = tuple(_tiled(part) for part in parts)
    if len(results) > 1 or tiled[0].tile:
        yield tiled


def _fits(way: Way) -> bool:
    try:
        for part in way:
            check_fit(part)
    except Unfit:
        return False
    return True


def _in_order(chain: Chain) -> list[str]:
    """The chain's results, as its steps make them."""
    results = {value.name for value in (*chain.outputs, *chain.sums)}
    return [s.out.name for s in (*chain.streamed, *chain.reduced) if s.out.name in results]


def _branches(program: Program, chain: Chain, results: list[str], count: int) -> Way:
    """The chain in so many branches, each making about as many results. Raises Unfit."""
    if count == 1:
        return (chain,)
    cuts = [len(results) * k // count for k in range(count + 1)]
    parts = []
    for first, last in itertools.pairwise(cuts):
        wanted = tuple(results[first:last])
        part = find_chain(drop_dead_steps(replace(program, outputs=wanted)), chain.low)
        alike = same_size(part.stream.size, chain.stream.size)
        if not alike or any(
            {value.name for value in made} != {value.name for value in whole}.intersection(wanted)
            for made, whole in ((part.outputs, chain.outputs), (part.sums, chain.sums))
        ):  # what is summed over one index stands along another
            raise Unfit("a branch would stream another index")
        parts.append(part)
    return tuple(parts)


# ---------------------------------------------------------------------------- open indices


def _tiled(chain: Chain) -> Chain:
    """The chain along the open index that leaves least of it on chip, as wide as there is room."""
    if sum(pressure(chain)) <= ROOMY:
        return chain
    found = [_at_width(chain, atom) for atom in _open_atoms(chain)]
    return min(found, key=lambda made: sum(pressure(made)), default=chain)


def _at_width(chain: Chain, atom: Atom) -> Chain:
    width = int(atom.size) & -int(atom.size)  # the largest power of two that divides it
    if width == atom.size:
        width //= 2
    while width > 1 and sum(pressure(replace(chain, tile=atom, width=width))) > ROOMY:
        width //= 2
    return replace(chain, tile=atom, width=width)


def _open_atoms(chain: Chain) -> list[Atom]:
    """Indices that all results have, or that only sums over the stream add up."""
    atoms = dict.fromkeys(a for step in chain.streamed for a in chain.flat(step.out.name))
    return [a for a in atoms if a != chain.stream and int(a.size) > 1 and _is_open(chain, a)]


def _is_open(chain: Chain, atom: Atom) -> bool:
    steps = (*chain.resident, *chain.streamed, *chain.reduced)
    values = [*chain.inputs, *(step.out for step in steps)]
    if any(chain.flat(value.name).count(atom) > 1 for value in values):
        return False
    if any(atom not in chain.flat(value.name) for value in chain.outputs):
        return False
    if len({atom in chain.flat(value.name) for value in chain.sums}) > 1:
        return False
    return not any(_adds_up(chain, step, atom) for step in steps)


def _adds_up(chain: Chain, step: Step, atom: Atom) -> bool:
    """Whether the step needs all positions of the index at once."""
    has = [atom in chain.flat(name) for name in step.operands if name in chain.atoms]
    if not any(has) or atom in chain.flat(step.out.name):
        return False
    streamed = any(chain.stream in chain.flat(name) for name in step.operands)
    into_sum = streamed and chain.stream not in chain.flat(step.out.name)
    return not (into_sum and isinstance(step.op, Contract))
