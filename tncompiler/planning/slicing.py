"""Fit a scheduled program into a limit of memory by computing along indices block by block.

In: a program, integers for its free sizes, bytes. Out: the cuts that were made and the program with
their loops. Greedy: while the peak is too high, the cut after which it is lowest; as soon as one
more is enough, the fastest of those that are, in the widest blocks that fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, product

from tncompiler.ir.passes.slicing import Axis, linked_axes, names_within, slice_index
from tncompiler.ir.passes.uses import join_uses, part_uses
from tncompiler.ir.program import Convolve, Loop, Op, Pick, Program, Scan, Step, Value
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.budget import Budget
from tncompiler.planning.memory import (
    SUM_RADIX,
    Moment,
    live_bytes,
    nbytes,
    peak_bytes,
    within,
)
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import program_us

_MOST_CUTS = 32
_MOST_STEPS = 8_000  # that a search looks at, over all the programs that it tries


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """An axis of a value along whose index is computed, `width` positions at a time.

    ``sink``: whether what a loop alone reads is made in it, for every block anew.
    """

    value: str
    axis: int
    width: int
    sink: bool = False


@dataclass(frozen=True)
class Fitted:
    """A program with loops, the cuts that made them, and its peak.

    ``sliced``: what the indices of the cuts are called. ``timed``: the program that is timed, with
    its sizes and rates.
    """

    program: Program
    cuts: tuple[Cut, ...]
    sliced: tuple[str, ...]
    peak: int
    timed: tuple[Program, Binding, Rates]

    @cached_property
    def time_us(self) -> float:
        """Predicted microseconds: only asked for where several programs compete."""
        return program_us(*self.timed)


# ---------------------------------------------------------------------------- cuts → loops


def apply_cuts(
    program: Program, cuts: Iterable[Cut], avoid: Collection[str] = frozenset()
) -> Program:
    """The program with a loop for each cut, the index that lives longest outermost.

    Cuts name values of the program as it is given, or of `part_uses` of it. ``avoid``: names that
    are in use around it.
    """
    cuts = tuple(cuts)
    if not cuts:  # linking the axes of large programs takes seconds
        return program
    program, stands_for = part_uses(program)
    members = _members(program)
    lives = _last_steps(program, members)
    links = {axis: root for root, axes in members.items() for axis in axes}
    named = {(cut.value, cut.axis): cut for cut in cuts}
    wanted = {links[axis]: cut for axis, cut in named.items() if axis in links}
    taken = names_within(program).union(avoid)
    for root in sorted(wanted, key=lambda root: -lives[root]):
        program = _apply(program, members[root], wanted[root], taken)
        taken |= names_within(program)
    return join_uses(program, stands_for)


def _members(program: Program) -> dict[Axis, set[Axis]]:
    """The axes of each index, by the first of them."""
    found: dict[Axis, set[Axis]] = {}
    for axis, root in linked_axes(program).items():
        found.setdefault(root, set()).add(axis)
    return found


def _last_steps(program: Program, members: Mapping[Axis, Collection[Axis]]) -> dict[Axis, int]:
    """The last step that carries or sums each index; beyond the end if an output carries it."""
    last = {argument.value.name: 0 for argument in program.arguments}
    for position, step in enumerate(program.steps):
        last.update(dict.fromkeys((*step.operands, step.out.name), position))
    last.update(dict.fromkeys(program.outputs, len(program.steps)))
    return {root: max(last[name] for name, _ in axes) for root, axes in members.items()}


def _apply(program: Program, members: Collection[Axis], cut: Cut, avoid: set[str]) -> Program:
    """The index in loops: here, and in the bodies of the loops that are here already."""
    older = {step.out.name for step in program.steps if isinstance(step.op, Loop)}
    links = linked_axes(program)
    for root in dict.fromkeys(links[axis] for axis in sorted(members) if axis in links):
        program = slice_index(
            program, root, cut.width, sink=cut.sink, avoid=avoid, whole_views=True
        )
    return program.with_steps(
        _inside(program, step, members, cut, avoid) if step.out.name in older else step
        for step in program.steps
    )


def _inside(
    program: Program, step: Step, members: Collection[Axis], cut: Cut, avoid: set[str]
) -> Step:
    loop: Loop = step.op  # type: ignore[assignment]
    inner = {axis for axis in members if axis[0] in loop.body.producers}
    for name, sliced, argument in zip(step.operands, loop.sliced, loop.body.arguments, strict=True):
        inner |= {(argument.value.name, k) for n, k in members if n == name and k != sliced}
    for other in program.steps:
        if isinstance(other.op, Pick) and other.operands == (step.out.name,):
            made, joined = loop.body.outputs[other.op.position], loop.joined[other.op.position]
            inner |= {(made, k) for n, k in members if n == other.out.name and k != joined}
    if not inner:
        return step
    body = _apply(loop.body, inner, cut, avoid)
    return step if body is loop.body else replace(step, op=replace(loop, body=body))


# ---------------------------------------------------------------------------- the search


def fit_program(
    program: Program,
    nominal: Binding,
    limit: int,
    rates: Rates,
    avoid: Collection[str] = frozenset(),
    start: tuple[Cut, ...] = (),
    budget: Budget | None = None,
) -> Fitted:
    """The program inside the limit if cuts can bring it there, else as low as they can.

    ``avoid``: names that are in use around the program. ``start``: cuts that are made before any
    other, if the program does not fit without. ``budget``: the time that looking for cuts has.
    """
    peak = peak_bytes(program, nominal)
    if peak <= limit:
        return Fitted(program, (), (), peak, (program, nominal, rates))
    numbers, _ = part_uses(numeric(program, nominal))
    own = tuple(cut for cut in start if cut.value in program.values)
    search = _Search(numbers, limit, rates, frozenset(avoid), budget or Budget())
    cuts = search.cuts(own)
    fitted = apply_cuts(numbers, cuts, avoid)
    return Fitted(
        apply_cuts(program, cuts, avoid),
        cuts,
        tuple(dict.fromkeys(numbers.values[cut.value].axes[cut.axis] for cut in cuts)),
        peak_bytes(fitted, {}),
        (fitted, {}, rates),
    )


def numeric(program: Program, nominal: Binding) -> Program:
    """The program with numbers for its sizes, to be measured and not to be run."""

    def at(value: Value) -> Value:
        return replace(value, shape=tuple(evaluate(size, nominal) for size in value.shape))

    arguments = tuple(replace(a, value=at(a.value)) for a in program.arguments)
    steps = tuple(
        replace(step, out=at(step.out), op=_numeric_op(step.op, nominal)) for step in program.steps
    )
    return replace(program, arguments=arguments, steps=steps)


def _numeric_op(op: Op, nominal: Binding) -> Op:
    """The operation with numbers for the sizes that it holds."""
    if isinstance(op, Scan):
        return replace(op, size=evaluate(op.size, nominal), body=numeric(op.body, nominal))
    if not isinstance(op, Convolve):
        return op
    related = []
    for relation in op.relations:
        source, out, kernel = (evaluate(size, nominal) for size in relation.sizes)
        related.append(replace(relation, sizes=(source, out, kernel)))
    return replace(op, relations=tuple(related))


@dataclass(frozen=True, slots=True, order=True)
class _Load:
    """How far a program is from fitting: its peak, and what all steps take too much together."""

    peak: int
    excess: int


@dataclass(frozen=True, slots=True)
class _Search:
    program: Program
    limit: int
    rates: Rates
    avoid: frozenset[str]
    budget: Budget

    def cuts(self, start: tuple[Cut, ...]) -> tuple[Cut, ...]:
        """The cuts that fit the program, or bring it as low as they can."""
        cuts, load = start, self._load(start)
        left = _MOST_STEPS // max(len(self.program.steps), 1)
        while load.excess and len(cuts) < _MOST_CUTS and left > 0 and not self.budget.late():
            tried = list(islice(self._tried(cuts), left))
            left -= len(tried)
            enough = [cut for after, cut in tried if not after.excess]
            if enough:
                return min(self._widened((*cuts, cut)) for cut in enough)[1]
            after, cut = min(tried, default=(load, None))
            if cut is None or after >= load:
                break
            cuts, load = (*cuts, cut), after
        return cuts

    def _load(self, cuts: tuple[Cut, ...]) -> _Load:
        program = apply_cuts(self.program, cuts, self.avoid)
        live = [live for _, live in live_bytes(program, {})]
        excess = sum(max(one - self.limit, 0) for one in live)
        return _Load(max(live, default=0), excess)

    def _tried(self, cuts: tuple[Cut, ...]) -> Iterator[tuple[_Load, Cut]]:
        """Each further cut with what is left to do after it.

        Few blocks take least for their sums, one position at a time takes least for the blocks;
        what is made before a loop takes memory, made in it, time.
        """
        links = linked_axes(self.program)
        done = {links[cut.value, cut.axis] for cut in cuts}
        for name, axis in dict.fromkeys(links.values()):
            size = evaluate(self.program.values[name].shape[axis], {})
            if size < 2 or (name, axis) in done:
                continue
            widths = dict.fromkeys((-(-size // SUM_RADIX), 1))
            for width, sink in product(widths, (False, True)):
                cut = Cut(name, axis, width, sink)
                after = self._load((*cuts, cut))
                yield after, cut
                if self.budget.late():
                    return
                if not after.excess:
                    break

    def _size(self, cut: Cut) -> int:
        return evaluate(self.program.values[cut.value].shape[cut.axis], {})

    def _widened(self, cuts: tuple[Cut, ...]) -> tuple[float, tuple[Cut, ...]]:
        """The cuts in the widest blocks that fit, the last one first, and the time they take."""
        fitted = apply_cuts(self.program, cuts, self.avoid)
        for position in reversed(range(len(cuts))):
            while (cut := cuts[position]).width < self._size(cut) and not self.budget.late():
                wider = replace(cut, width=2 * cut.width)
                more = (*cuts[:position], wider, *cuts[position + 1 :])
                tried = apply_cuts(self.program, more, self.avoid)
                if peak_bytes(tried, {}) > self.limit:
                    break
                cuts, fitted = more, tried
        return program_us(fitted, {}, self.rates), cuts


# ---------------------------------------------------------------------------- what to say of it


def largest_alive(program: Program, nominal: Binding) -> tuple[str, int]:
    """The computed value with the most bytes that is alive at the peak, in loops too."""
    alive: dict[str, None] = {}
    best: tuple[int, Moment | None, list[str]] = (0, None, [])
    for moment, live in live_bytes(program, nominal):
        alive.update(dict.fromkeys(moment.made))
        if live > best[0]:
            best = (live, moment, list(alive))
        for name in moment.freed:
            alive.pop(name, None)
    _, at, names = best
    found = [(name, nbytes(program.values[name]).evaluate(nominal)) for name in names]
    if at is not None and isinstance(at.step.op, Loop):
        found.append(largest_alive(at.step.op.body, within(at.step.op, nominal)))
    return max(found, key=lambda item: item[1], default=("", 0))
