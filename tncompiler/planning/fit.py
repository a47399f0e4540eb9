"""Fit a training step into a limit of memory: what to keep, what to make again, what to slice.

In: the joint program and a limit. Out: forward and backward programs, perhaps with loops, and how
they were chosen: the fastest of those that fit, by predicted time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tncompiler.ir.passes.partition import TrainingPrograms, partition
from tncompiler.ir.passes.slicing import names_within
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Binding
from tncompiler.planning.budget import Budget
from tncompiler.planning.memory import held_bytes, step_peak
from tncompiler.planning.order import Pair
from tncompiler.planning.rates import Rates
from tncompiler.planning.recompute import choose_kept
from tncompiler.planning.slicing import Cut, Fitted, fit_program

UNLIMITED = 1 << 100_000  # bytes: above every peak, also of sizes that no array can have
T = TypeVar("T", "Fitted", "FittedStep")


@dataclass(frozen=True, slots=True)
class FittedStep:
    """A training step: its programs, how each was fitted, and the peak of both together."""

    programs: TrainingPrograms
    forward: Fitted
    backward: Fitted
    peak: int

    @property
    def sliced(self) -> tuple[str, ...]:
        """What the indices of the cuts are called."""
        return tuple(dict.fromkeys((*self.forward.sliced, *self.backward.sliced)))

    @property
    def time_us(self) -> float:
        """Predicted microseconds."""
        return self.forward.time_us + self.backward.time_us


@dataclass(frozen=True, slots=True)
class FittedOrders(Generic[T]):
    """What was fitted, the order of each network in it, whether a search for it was cut."""

    orders: Mapping[str, tuple[Pair, ...]]
    fitted: T
    cut: bool = False


def fastest(found: Sequence[FittedOrders[T]], limit: int) -> FittedOrders[T]:
    """The fastest inside the limit, the first among equals; else the one with the lowest peak."""
    if len(found) == 1:
        return found[0]
    enough = [one for one in found if one.fitted.peak <= limit]
    if enough:
        return min(enough, key=lambda one: one.fitted.time_us)
    return min(found, key=lambda one: one.fitted.peak)


def fit_step(
    joint: Program,
    count: int,
    nominal: Binding,
    limit: int,
    rates: Rates,
    recompute: str,
    start: tuple[Cut, ...] = (),
    budget: Budget | None = None,
) -> FittedStep:
    """The fastest step inside the limit that was found, else the one with the lowest peak.

    ``count``: outputs of the joint program that are no gradients. ``recompute``: "auto", "never"
    or "always". ``start``: cuts that are made before any other where there must be some.
    ``budget``: the time that the search has.
    """
    budget = budget or Budget()
    choices = _choices(joint, count, nominal, limit, rates, recompute, budget)
    found = [_sliced(cut, nominal, limit, rates, start, budget) for cut in choices]
    return fastest([FittedOrders({}, step) for step in found], limit).fitted


def _choices(
    joint: Program,
    count: int,
    nominal: Binding,
    limit: int,
    rates: Rates,
    recompute: str,
    budget: Budget,
) -> Iterator[TrainingPrograms]:
    """The step with the values kept that are best without loops; and with all, and with none."""
    outputs = frozenset(joint.outputs[:count])
    if recompute != "auto" or limit == UNLIMITED:
        yield partition(joint, count, outputs if recompute == "always" else None)
        return
    kept = choose_kept(joint, count, nominal, limit, rates, budget)
    everything = partition(joint, count)
    if kept is not None:
        yield partition(joint, count, kept)
        if kept.issuperset(everything.saved):
            return
    yield everything
    yield partition(joint, count, outputs)


def _sliced(
    cut: TrainingPrograms,
    nominal: Binding,
    limit: int,
    rates: Rates,
    start: tuple[Cut, ...],
    budget: Budget,
) -> FittedStep:
    """The step as it is where it fits, else with loops in whichever program takes too much."""
    held = held_bytes(cut.forward, nominal)
    forward = fit_program(cut.forward, nominal, limit, rates, start=start, budget=budget)
    taken = names_within(forward.program)
    backward = fit_program(cut.backward, nominal, limit - held, rates, taken, start, budget)
    programs = replace(cut, forward=forward.program, backward=backward.program)
    is_whole = not (forward.cuts or backward.cuts)
    peak = max(forward.peak, held + backward.peak) if is_whole else step_peak(programs, nominal)
    return FittedStep(programs, forward, backward, peak)
