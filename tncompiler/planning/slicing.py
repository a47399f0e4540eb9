"""Fit a scheduled program into a limit of memory by computing along indices block by block.

In: a program, integers for its free sizes, bytes. Out: the cuts that were made, in order, and the
program with their loops. Greedy: while the peak is too high, the cut after which it is lowest; as
soon as one cut is enough, the fastest of those that are, in the widest blocks that fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tncompiler.ir.passes.slicing import Axis, linked_axes, names_within, slice_index
from tncompiler.ir.program import Loop, Program, Step, Value
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.memory import SUM_RADIX, live_bytes, nbytes, owners, peak_bytes, within
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import program_us

_MOST_CUTS = 32


@dataclass(frozen=True, slots=True, order=True)
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


def apply_cuts(
    program: Program, cuts: Iterable[Cut], avoid: Collection[str] = frozenset()
) -> Program:
    """The program with a loop for each cut, later ones inside earlier ones where they meet.

    ``avoid``: names that are in use around the program.
    """
    for cut in cuts:
        program = _apply(program, cut, frozenset(names_within(program)).union(avoid))
    return program


def _apply(
    program: Program, cut: Cut, avoid: frozenset[str], links: dict[Axis, Axis] | None = None
) -> Program:
    if cut.value in program.values:
        program = slice_index(program, (cut.value, cut.axis), cut.width, avoid, links)
    return program.with_steps(_inside(step, cut, avoid) for step in program.steps)


def _inside(step: Step, cut: Cut, avoid: frozenset[str]) -> Step:
    """The step; a loop that reads the value whole, or makes it, with the cut in its body."""
    op = step.op
    if not isinstance(op, Loop):
        return step
    body = op.body
    if cut.value in names_within(body) and cut.value not in step.operands:
        body = _apply(body, cut, avoid)
    for name, axis, argument in zip(step.operands, op.sliced, body.arguments, strict=True):
        if name == cut.value and axis != cut.axis:
            body = _apply(body, replace(cut, value=argument.value.name), avoid)
    return step if body is op.body else replace(step, op=replace(op, body=body))


# ---------------------------------------------------------------------------- the search


def fit_program(
    program: Program,
    nominal: Binding,
    limit: int,
    rates: Rates,
    avoid: Collection[str] = frozenset(),
) -> Fitted:
    """The program inside the limit if cuts can bring it there, else as low as they can.

    ``avoid``: names that are in use around the program.
    """
    numbers = _numeric(program, nominal)
    search = _Search(numbers, limit, rates, frozenset(avoid))
    cuts = search.cuts() if peak_bytes(numbers, {}) > limit else ()
    fitted = apply_cuts(numbers, cuts, avoid)
    return Fitted(
        apply_cuts(program, cuts, avoid),
        cuts,
        peak_bytes(fitted, {}),
        program_us(fitted, {}, rates),
    )


def _numeric(program: Program, nominal: Binding) -> Program:
    """The program with numbers for its sizes, to be measured and not to be run."""

    def at(value: Value) -> Value:
        return replace(value, shape=tuple(evaluate(size, nominal) for size in value.shape))

    arguments = tuple(replace(a, value=at(a.value)) for a in program.arguments)
    steps = tuple(replace(step, out=at(step.out)) for step in program.steps)
    return replace(program, arguments=arguments, steps=steps)


@dataclass(frozen=True, slots=True)
class _Search:
    program: Program
    limit: int
    rates: Rates
    avoid: frozenset[str]

    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that fit the program, or bring it as low as they can."""
        program, cuts = self.program, list[Cut]()
        peak = peak_bytes(program, {})
        while peak > self.limit and len(cuts) < _MOST_CUTS:
            tried = self._tried(program)
            enough = [cut for lower, _, cut in tried if lower <= self.limit]
            if enough:
                return (*cuts, self._fastest(program, enough))
            lower, _, cut = min(tried, default=(peak, 0, None))
            if cut is None or lower >= peak:
                break
            program, peak = apply_cuts(program, [cut], self.avoid), lower
            cuts.append(cut)
        return tuple(cuts)

    def _tried(self, program: Program) -> list[tuple[int, int, Cut]]:
        """Each cut worth trying with the peak after it, and its number.

        Few blocks take least for their sums; where they help and are not enough, one position at a
        time takes least for the blocks.
        """
        links, avoid = linked_axes(program), frozenset(names_within(program)).union(self.avoid)
        found, before = list[tuple[int, int, Cut]](), peak_bytes(program, {})
        for number, (cut, size) in enumerate(_moves(program, self.limit)):
            for width in dict.fromkeys((-(-size // SUM_RADIX), 1)):
                narrow = replace(cut, width=width)
                peak = peak_bytes(_apply(program, narrow, avoid, links), {})
                found.append((peak, number, narrow))
                if peak <= self.limit or peak >= before:
                    break
        return found

    def _fastest(self, program: Program, cuts: Iterable[Cut]) -> Cut:
        """The fastest of cuts that fit, each in the widest blocks that do."""
        best: dict[tuple[str, int], Cut] = {}
        for cut in cuts:
            best[cut.value, cut.axis] = max(
                cut, best.get((cut.value, cut.axis), cut), key=lambda cut: cut.width
            )
        widened = [self._widened(program, cut) for cut in best.values()]
        return min(widened)[2]

    def _widened(self, program: Program, cut: Cut) -> tuple[float, int, Cut]:
        fitted = apply_cuts(program, [cut], self.avoid)
        while True:
            wider = replace(cut, width=2 * cut.width)
            tried = apply_cuts(program, [wider], self.avoid)
            if tried == fitted or peak_bytes(tried, {}) > self.limit:
                return program_us(fitted, {}, self.rates), -cut.width, cut
            cut, fitted = wider, tried


def _moves(program: Program, limit: int) -> Iterator[tuple[Cut, int]]:
    """Each index of the program, and of loops whose bodies take too much, with its size."""
    for name, axis in dict.fromkeys(linked_axes(program).values()):
        size = evaluate(program.values[name].shape[axis], {})
        if size > 1:
            yield Cut(name, axis, 1), size
    for moment, live in live_bytes(program, {}):
        loop = moment.step.op
        if live > limit and isinstance(loop, Loop):
            inner = [argument.value.name for argument in loop.body.arguments]
            outside = dict(zip(inner, moment.step.operands, strict=True))
            body = _numeric(loop.body, within(loop, {}))
            for cut, size in _moves(body, limit - live):
                yield replace(cut, value=outside.get(cut.value, cut.value)), size


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
