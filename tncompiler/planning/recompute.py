"""Which computed values a training step keeps for its backward pass, and which it makes again.

In: the joint program, integers for its free sizes, bytes. Out: the values to keep. Exact for
programs with few intermediates; for larger ones values are dropped one by one, the one first that
saves most bytes for its time.
"""

from __future__ import annotations

import math
from itertools import combinations, takewhile

from tncompiler.ir.passes.partition import inputs_of, partition
from tncompiler.ir.program import Literal, Permute, Pick, Program, Step
from tncompiler.ir.sizes import Binding
from tncompiler.planning.budget import Budget
from tncompiler.planning.memory import is_token, is_view, nbytes, step_peak
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import step_us

EXACT_UP_TO = 12  # intermediates
_TRIED = 16  # values that are considered in one step of the search through larger programs

Kept = frozenset[str]


class _Forward:
    """What the choice is among: the forward values, what each is made of and what it takes."""

    def __init__(self, joint: Program, count: int, nominal: Binding, rates: Rates) -> None:
        self.joint, self.count, self.nominal = joint, count, nominal
        cut = partition(joint, count)
        self.needed, self.outputs = cut.saved, frozenset(joint.outputs[:count])
        forward = cut.forward
        free = _made_anyway(forward)
        self.made_of = {
            step.out.name: [n for n in step.operands if n in forward.producers and n not in free]
            for step in forward.steps
        }
        self.time_us = {s.out.name: step_us(forward, s, nominal, rates) for s in forward.steps}
        self.bytes = {s.out.name: nbytes(s.out).evaluate(nominal) for s in forward.steps}
        self.candidates = [
            step.out.name
            for step in forward.steps
            if not (step.out.name in self.outputs or step.out.name in free or _is_no_memory(step))
        ]

    def peak(self, kept: Kept) -> int:
        """The peak of the training step."""
        return step_peak(partition(self.joint, self.count, kept), self.nominal)

    def again_us(self, kept: Kept) -> float:
        """Predicted microseconds of what the backward program computes again."""
        pending = [name for name in self.needed if name not in kept]
        seen = set(pending)
        for name in pending:  # grows while it is read
            new = [n for n in self.made_of[name] if n not in kept and n not in seen]
            seen.update(new)
            pending += new
        return math.fsum(self.time_us[name] for name in pending)


def _is_no_memory(step: Step) -> bool:
    """Whether keeping the step's value would keep nothing: scans are kept by their results."""
    return is_token(step) or (is_view(step) and not isinstance(step.op, Pick))


def _made_anyway(forward: Program) -> set[str]:
    """Numbers and copies of inputs, which both programs make."""
    given = inputs_of(forward)
    return {
        step.out.name
        for step in forward.steps
        if isinstance(step.op, Literal)
        or (isinstance(step.op, Permute) and given.issuperset(step.operands))
    }


def choose_kept(
    joint: Program,
    count: int,
    nominal: Binding,
    limit: int,
    rates: Rates,
    budget: Budget | None = None,
) -> Kept | None:
    """The values to keep in the fastest training step inside the limit; None if none fits.

    ``count``: outputs of the joint program that are no gradients. ``budget``: the time that the
    choice has; None if none was found in it.
    """
    budget = budget or Budget()
    forward = _Forward(joint, count, nominal, rates)
    everything = frozenset(forward.needed)
    if forward.peak(everything) <= limit:
        return everything
    if len(forward.candidates) <= EXACT_UP_TO:
        return _exact(forward, limit, budget)
    return _fewer(forward, everything, limit, budget)


def _exact(forward: _Forward, limit: int, budget: Budget) -> Kept | None:
    """The fastest set that fits; among equals the smallest. None if none fits."""
    sets = (
        forward.outputs.union(chosen)
        for size in range(len(forward.candidates) + 1)
        for chosen in combinations(forward.candidates, size)
    )
    ranked = sorted(enumerate(sets), key=lambda item: (forward.again_us(item[1]), item[0]))
    in_time = takewhile(lambda _: not budget.late(), ranked)
    return next((kept for _, kept in in_time if forward.peak(kept) <= limit), None)


def _fewer(forward: _Forward, everything: Kept, limit: int, budget: Budget) -> Kept | None:
    """The first set that fits as values are dropped, refilled."""
    kept = everything
    peak, time = forward.peak(kept), forward.again_us(kept)
    while peak > limit and kept - forward.outputs and not budget.late():
        options = []
        for name in _heaviest(forward, kept):
            fewer = kept - {name}
            lower, slower = forward.peak(fewer), forward.again_us(fewer)
            gain = peak - lower + 1e-3 * forward.bytes[name]
            options.append((-gain / max(slower - time, 1e-3), name, fewer, lower, slower))
        _, _, kept, peak, time = min(options)
    return _refilled(forward, kept, everything, limit, budget) if peak <= limit else None


def _heaviest(forward: _Forward, kept: Kept) -> list[str]:
    """The kept values that take most bytes."""
    return sorted(kept - forward.outputs, key=lambda name: (-forward.bytes[name], name))[:_TRIED]


def _refilled(forward: _Forward, kept: Kept, everything: Kept, limit: int, budget: Budget) -> Kept:
    """The set with values put back as long as the step fits and gets faster."""
    for name in sorted(everything - kept, key=lambda name: (-forward.time_us[name], name)):
        if budget.late():
            break
        more = kept | {name}
        if forward.again_us(more) < forward.again_us(kept) and forward.peak(more) <= limit:
            kept = more
    return kept
