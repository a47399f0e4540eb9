"""Bytes of computed values alive at once: of a program, and of a training step cut in two.

Arguments are not counted; outputs and saved values are. Views share the memory of what they view. A
loop takes its results, the levels of its sums, and what its body takes for one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import sympy

from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import body_of
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.passes.partition import TrainingPrograms
from tncompiler.ir.program import (
    Contract,
    Literal,
    Loop,
    Merge,
    Pick,
    Program,
    Scan,
    Split,
    Step,
    Unfold,
    Value,
    operand_values,
)
from tncompiler.ir.sizes import Binding, Size, Terms, evaluate, plain, resized
from tncompiler.ir.stacking import Member

SUM_RADIX = 16  # blocks that a level of a running sum adds up; see backends/*/runtime.py
_MOST_BLOCKS = 2**58  # beyond what any array has
_SUMMED_IN_DOUBLE = ("float32", "complex64")  # by a Scatter


def nbytes(value: Value) -> Terms:
    """The bytes of a value."""
    return Terms.of(ITEM_BYTES[value.dtype], value.shape)


def made_bytes(program: Program, step: Step) -> Terms:
    """The bytes that a step's value takes: seen through windows, those of the padded source."""
    if not isinstance(step.op, Unfold):
        return nbytes(step.out)
    source, geometry = program.values[step.operands[0]], step.op.geometry
    size = plain(source.shape[step.op.axis] + geometry.before + geometry.after)
    return nbytes(replace(source, shape=resized(source.shape, step.op.axis, size)))


def is_view(step: Step) -> bool:
    """Whether a step moves no data: splits, merges, members, literals, permutations, diagonals,
    windows."""
    op = step.op
    if isinstance(op, Contract) and len(op.inputs) <= 1:
        return all(set(labels) == set(op.output) for labels in op.inputs) and (
            len(set(op.output)) == len(op.output)
        )
    if isinstance(op, Unfold):
        return op.geometry.before == op.geometry.after == 0
    return isinstance(op, Split | Merge | Literal | Pick | Member)


def read_values(step: Step, operands: tuple[Value, ...]) -> tuple[Value, ...]:
    """What a step reads from memory: its operands, but of a table only what is gathered."""
    return (step.out, *operands[1:]) if isinstance(step.op, Gather) else operands


def is_token(step: Step) -> bool:
    """Whether a step makes no value itself: its Picks take out what it makes."""
    return isinstance(step.op, Loop | Scan)


@dataclass(frozen=True, slots=True)
class Moment:
    """One step: the values whose memory it takes, and those whose memory is free after it."""

    step: Step
    made: tuple[str, ...]
    freed: tuple[str, ...]


def moments(program: Program) -> Iterator[Moment]:
    """The steps in order."""
    owner = owners(program)
    kept = {owner[name] for name in program.outputs if name in owner}
    last: dict[str, int] = {}
    results: dict[str, list[str]] = {}
    for position, step in enumerate(program.steps):
        if isinstance(step.op, Pick):
            results.setdefault(step.operands[0], []).append(step.out.name)
        for name in (*step.operands, step.out.name):
            if name in owner:
                last[owner[name]] = position
    freed: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in kept:
            freed.setdefault(position, []).append(name)
    for position, step in enumerate(program.steps):
        own = owner.get(step.out.name) == step.out.name and not isinstance(step.op, Pick)
        made = (*((step.out.name,) if own else ()), *results.get(step.out.name, ()))
        yield Moment(step, made, tuple(freed.get(position, ())))


def owners(program: Program) -> dict[str, str]:
    """Which computed value's memory each computed value lives in; a token has none."""
    owner: dict[str, str] = {}
    for step in program.steps:
        if is_token(step):
            continue
        is_own = isinstance(step.op, Pick) or not (step.operands and is_view(step))
        source = None if is_own else step.operands[0]
        if source is None:
            owner[step.out.name] = step.out.name
        elif source in owner:
            owner[step.out.name] = owner[source]
    return owner


def peak_bytes(program: Program, binding: Binding) -> int:
    """The most bytes of computed values alive at once."""
    return max((live for _, live in live_bytes(program, binding)), default=0)


def live_bytes(program: Program, binding: Binding) -> Iterator[tuple[Moment, int]]:
    """Each step with the bytes that are alive while it runs."""
    sizes = {s.out.name: made_bytes(program, s).evaluate(binding) for s in program.steps}
    live = 0
    for moment in moments(program):
        live += sum(sizes[name] for name in moment.made)
        yield moment, live + _scratch_bytes(program, moment.step, binding)
        live -= sum(sizes[name] for name in moment.freed)


def within(loop: Loop | Scan, binding: Binding) -> Binding:
    """The binding in the body, for a whole block."""
    if isinstance(loop, Scan) or isinstance(loop.block, int):
        return binding
    width = min(loop.width, evaluate(loop.size, binding))
    return {**binding, loop.block: width}


def _scratch_bytes(program: Program, step: Step, binding: Binding) -> int:
    """What a step takes beside its value while it runs."""
    if isinstance(step.op, Loop | Scan):
        return repeated_bytes(step.op, binding)
    if isinstance(step.op, Attention):
        body = body_of(step, operand_values(program, step))
        return peak_bytes(body, binding) - nbytes(step.out).evaluate(binding)
    if _widens(step):
        return 2 * nbytes(step.out).evaluate(binding)
    return 0


def _widens(step: Step) -> bool:
    """Whether a step holds its value in double precision while it runs."""
    is_sum = isinstance(step.op, Scatter) and step.op.function == "sum"
    return is_sum and step.out.dtype in _SUMMED_IN_DOUBLE


def repeated_bytes(op: Loop | Scan, binding: Binding) -> int:
    """What a loop or scan takes beside its results."""
    inner = within(op, binding)
    count = evaluate(op.count, binding)
    levels = sum(count > room for room in _rooms())
    sums = sum(nbytes(op.body.values[name]).evaluate(inner) for name in added(op))
    states = sum(nbytes(value).evaluate(inner) for value in states_before(op))
    return peak_bytes(op.body, inner) + levels * sums + states


def _rooms() -> Iterator[int]:
    """How many blocks one level of a running sum holds, then two, and so on."""
    room = SUM_RADIX
    while room < _MOST_BLOCKS:
        yield room
        room = SUM_RADIX * (room + 1)


def added(op: Loop | Scan) -> tuple[str, ...]:
    """The results of a body that are added up."""
    first = op.carried if isinstance(op, Scan) else 0
    results = zip(op.body.outputs[first:], op.joined[first:], strict=True)
    return tuple(name for name, axis in results if axis is None)


def states_before(op: Loop | Scan) -> tuple[Value, ...]:
    """The states that are held while the body makes the next."""
    carried = op.carried if isinstance(op, Scan) else 0
    return tuple(argument.value for argument in op.body.arguments[:carried])


def peak_expression(alive: Iterable[Terms]) -> sympy.Expr:
    """The peak of what is alive at each step, in the free sizes: an unevaluated Max."""
    totals = dict.fromkeys(alive)
    return sympy.Max(0, *(terms.to_sympy() for terms in totals), evaluate=False)


def live_terms(program: Program) -> Iterator[Terms]:
    """What is alive while each step runs, in loops too."""
    alive: dict[str, Terms] = {}
    for moment in moments(program):
        made = (program.producers[name] for name in moment.made)
        alive.update((step.out.name, made_bytes(program, step)) for step in made)
        total = Terms.total(alive.values())
        yield total
        for beside in scratch_terms(program, moment.step):
            yield total + beside
        for name in moment.freed:
            del alive[name]


def scratch_terms(program: Program, step: Step) -> Iterator[Terms]:
    """What a step takes beside its value at each moment of its run, as `_scratch_bytes` at most."""
    op = step.op
    if isinstance(op, Loop | Scan):
        beside = Terms.total((*_level_terms(op), *map(nbytes, states_before(op))))
        for inner in (Terms(), *live_terms(op.body)):
            alive = beside + inner
            yield alive if isinstance(op, Scan) else alive.replaced(op.block, _width(op))
    if isinstance(op, Attention):
        made = nbytes(step.out)
        less = Terms.total(Terms.of(-count, factors) for count, factors in made.terms)
        for inner in live_terms(body_of(step, operand_values(program, step))):
            yield inner + less
    if _widens(step):
        yield nbytes(step.out) + nbytes(step.out)


def _level_terms(op: Loop | Scan) -> Iterator[Terms]:
    """The levels of running sums after the first: one more each time that those before are full."""
    sums = Terms.total(nbytes(op.body.values[name]) for name in added(op))
    for room in _rooms() if sums.terms else ():
        if not isinstance(op.count, int):
            is_full = sympy.Min(1, sympy.floor(op.count / sympy.Integer(room + 1)))
            yield Terms.total(Terms.of(c, (is_full, *f)) for c, f in sums.terms)
        elif op.count > room:
            yield sums


def _width(op: Loop) -> Size:
    """The positions of a whole block; a short index has one shorter block."""
    return op.width if isinstance(op.size, int) else sympy.Min(op.width, op.size)


# ---------------------------------------------------------------------------- a training step


def step_peak(cut: TrainingPrograms, binding: Binding) -> int:
    """The most bytes alive in a training step: outputs and saved values stay until its end."""
    backward = peak_bytes(cut.backward, binding)
    return max(peak_bytes(cut.forward, binding), held_bytes(cut.forward, binding) + backward)


def step_terms(cut: TrainingPrograms) -> Iterator[Terms]:
    """What is alive while each step of a training step runs."""
    held = held_terms(cut.forward)
    yield from live_terms(cut.forward)
    yield held
    for alive in live_terms(cut.backward):
        yield held + alive


def held_bytes(program: Program, binding: Binding) -> int:
    """The bytes of a program's outputs."""
    return held_terms(program).evaluate(binding)


def held_terms(program: Program) -> Terms:
    """The bytes of a program's outputs in the free sizes; two views of one array count once."""
    owner = owners(program)
    held = dict.fromkeys(owner[name] for name in program.outputs if name in owner)
    return Terms.total(nbytes(program.values[name]) for name in held)
