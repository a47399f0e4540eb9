"""Fit a scheduled program into a limit of memory by computing along indices block by block.

In: a program, integers for its free sizes, bytes. Out: the cuts that were made, in order, and the
program with their loops. Greedy: while the peak is too high, the cut after which it is lowest; as
soon as one cut is enough, the fastest of those that are, in the widest blocks that fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.passes.slicing import linked_axes, names_within, slice_index
from tncompiler.ir.program import Loop, Program, Step
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.memory import live_bytes, nbytes, owners, peak_bytes, within
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import program_us

_MOST_CUTS = 32


@dataclass(frozen=True, slots=True)
class Cut:
    """An axis of a value along whose index is computed, `width` positions at a time."""

    value: str
    axis: int
    width: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A program with loops, the cuts that made them, its peak and its predicted microseconds."""

    program: Program
    cuts: tuple[Cut, ...]
    peak: int
    time_us: float


def apply_cuts(program: Program, cuts: Iterable[Cut]) -> Program:
    """The program with a loop for each cut, later ones inside earlier ones where they meet."""
    for cut in cuts:
        program = _apply(program, cut, frozenset(names_within(program)))
    return program


def _apply(program: Program, cut: Cut, avoid: frozenset[str]) -> Program:
    if cut.value in program.values:
        program = slice_index(program, (cut.value, cut.axis), cut.width, avoid)
    return program.with_steps(_inside(step, cut, avoid) for step in program.steps)


def _inside(step: Step, cut: Cut, avoid: frozenset[str]) -> Step:
    """The step; a loop that reads the value whole, or makes it, with the cut in its body."""
    op = step.op
    if not isinstance(op, Loop):
        return step
    body = op.body
    if cut.value in body.producers:
        body = _apply(body, cut, avoid)
    for name, axis, argument in zip(step.operands, op.sliced, body.arguments, strict=True):
        if name == cut.value and axis != cut.axis:
            body = _apply(body, replace(cut, value=argument.value.name), avoid)
    return step if body is op.body else replace(step, op=replace(op, body=body))


# ---------------------------------------------------------------------------- the search


def fit_program(program: Program, nominal: Binding, limit: int, rates: Rates) -> Fitted:
    """The program inside the limit if cuts can bring it there, else as low as they can."""
    cuts: tuple[Cut, ...] = ()
    now = _fitted(program, cuts, nominal, rates)
    while now.peak > limit and len(cuts) < _MOST_CUTS:
        tried = [
            _fitted(apply_cuts(now.program, [cut]), (*cuts, cut), nominal, rates)
            for cut in _moves(now.program, nominal, limit)
        ]
        better = [fitted for fitted in tried if fitted.peak < now.peak]
        if not better:
            break
        enough = [fitted for fitted in better if fitted.peak <= limit]
        if enough:
            widened = (_widened(program, f, nominal, limit, rates) for f in enough)
            return min(widened, key=lambda fitted: fitted.time_us)
        now = min(better, key=lambda fitted: (fitted.peak, fitted.time_us))
        cuts = now.cuts
    return now


def _fitted(program: Program, cuts: tuple[Cut, ...], nominal: Binding, rates: Rates) -> Fitted:
    time_us = program_us(program, nominal, rates)
    return Fitted(program, cuts, peak_bytes(program, nominal), time_us)


def _moves(program: Program, nominal: Binding, limit: int) -> Iterator[Cut]:
    """One cut for each index of the program, and of loops whose bodies take too much."""
    sizes = dict(nominal)
    for root in dict.fromkeys(linked_axes(program).values()):
        if evaluate(program.values[root[0]].shape[root[1]], sizes) > 1:
            yield Cut(*root, 1)
    for moment, live in live_bytes(program, nominal):
        if live > limit and isinstance(moment.step.op, Loop):
            loop = moment.step.op
            for cut in _moves(loop.body, within(loop, nominal), 0):
                if cut.value in loop.body.producers:
                    yield cut
                else:
                    yield _from_outside(cut, moment.step, loop)


def _from_outside(cut: Cut, step: Step, loop: Loop) -> Cut:
    """The cut, by the name that the value has outside the loop."""
    names = [argument.value.name for argument in loop.body.arguments]
    return replace(cut, value=step.operands[names.index(cut.value)])


def _widened(
    program: Program, fitted: Fitted, nominal: Binding, limit: int, rates: Rates
) -> Fitted:
    """The fastest in wider blocks, the last cut first, that stays inside the limit."""
    best = fitted
    for position in reversed(range(len(fitted.cuts))):
        cuts = list(best.cuts)
        while True:
            cuts[position] = replace(cuts[position], width=2 * cuts[position].width)
            wider = _fitted(apply_cuts(program, cuts), tuple(cuts), nominal, rates)
            if wider.peak > limit or wider.program == best.program:
                break
            if wider.time_us < best.time_us:
                best = wider
            if cuts[position].width >= _MOST_WIDTH:
                break
    return best


_MOST_WIDTH = 2**20


def largest_alive(program: Program, nominal: Binding) -> tuple[str, int]:
    """The computed value with the most bytes that is alive at the peak, in loops too."""
    held: dict[str, int] = {}
    best: tuple[int, tuple[str, int]] = (-1, ("", 0))
    owner = owners(program)
    for moment, live in live_bytes(program, nominal):
        held.update((name, nbytes(program.values[name]).evaluate(nominal)) for name in moment.made)
        if live > best[0] and held:
            name = max(held, key=lambda name: held[name])
            best = (live, (name, held[name]))
            if isinstance(moment.step.op, Loop):
                inner = largest_alive(moment.step.op.body, within(moment.step.op, nominal))
                best = (live, max(best[1], inner, key=lambda found: found[1]))
        for name in moment.freed:
            held.pop(owner.get(name, name), None)
    return best[1]


def sliced_names(program: Program, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """What the indices of the cuts are called."""
    values, pending = dict(program.values), [program]
    while pending:
        current = pending.pop()
        values.update(current.values)
        pending += [step.op.body for step in current.steps if isinstance(step.op, Loop)]
    return tuple(dict.fromkeys(values[cut.value].axes[cut.axis] for cut in cuts))
