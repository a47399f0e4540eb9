"""Timing in turn: every contestant once per round, so that all see the same machine.

In: calls by name and a budget of seconds. Out: a Timing each, in milliseconds for one call.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

LEAST_ROUNDS = 7
MOST_ROUNDS = 31
SLOW_S = 3.0  # a call that takes longer is timed SLOW_ROUNDS times at most, and marked
SLOW_ROUNDS = 3
FAR, FAR_S = 8.0, 0.05  # so many times as slow as the fastest, and so many seconds, is slow too
SLOW_SHARE = 0.3  # of the budget that the rounds of one slow call may take
SAMPLE_S = 2e-3  # shorter calls are repeated within a sample until it lasts this long
SETTLE_S = 6e-3  # of calls before each sample, for the caches
# where calls have threads: those of others go to sleep (see __init__.py), and threads that a kernel
# wakes on one core share it for some turns of 4 ms, by which a call of 3 ms took 4 or 7
THREADS_SETTLE_S = 0.06
MOST_CALLS = 1000

Runs = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Timing:
    """``samples_ms``: one for each round, each the mean of ``calls`` calls.

    ``slow``: timed fewer rounds than the others, because a call takes seconds or many times as
    long as the fastest.
    """

    samples_ms: tuple[float, ...]
    calls: int
    slow: bool = False

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def spread_ms(self) -> float:
        """The distance of the quartiles."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(high - low)


def time_in_turn(
    runs: Runs,
    budget_s: float,
    slow_s: float = SLOW_S,
    clock: Clock | None = None,
    settle_s: float = SETTLE_S,
) -> dict[str, Timing]:
    """Time all calls in rounds: 7 of them, or as many up to 31 as fit into the budget.

    Every call is warmed up, and again before each sample; each round has an order of its own, so
    that none always follows the same neighbour. ``clock``: process_time leaves out the turns of
    other programs, for one thread. ``settle_s``: of calls before each sample; THREADS_SETTLE_S
    where they come from libraries with threads of their own.
    """
    estimates = {name: _warm_up(run, slow_s) for name, run in runs.items()}
    far = max(FAR * min(estimates.values(), default=0.0), FAR_S)
    slow = {name for name, seconds in estimates.items() if seconds > min(slow_s, far)}
    calls = {name: 1 if name in slow else _calls(estimates[name]) for name in runs}
    few = {name: _slow_rounds(estimates[name], budget_s) for name in slow}
    rounds = _rounds(estimates, calls, few, budget_s, settle_s)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            names = list(runs)
            shuffle(names)
            for name in names:
                if number < few.get(name, rounds):
                    if name not in slow:
                        _settle(runs[name], settle_s)
                    samples[name].append(_sample_ms(runs[name], calls[name], clock))
    finally:
        gc.enable()
    return {name: Timing(tuple(samples[name]), calls[name], name in slow) for name in runs}


def _warm_up(run: Callable[[], object], slow_s: float) -> float:
    """Seconds of a call that is warm."""
    first = _seconds(run, 1)
    return first if first > slow_s else min(_seconds(run, 1) for _ in range(2))


def _calls(seconds: float) -> int:
    return min(max(ceil(SAMPLE_S / max(seconds, 1e-9)), 1), MOST_CALLS)


def _settle(run: Callable[[], object], seconds: float) -> None:
    """Call for so long, and once at least."""
    end = time.perf_counter() + seconds
    run()
    while time.perf_counter() < end:
        run()


def _slow_rounds(seconds: float, budget_s: float) -> int:
    return int(min(max(SLOW_SHARE * budget_s / seconds, 1), SLOW_ROUNDS))


def _rounds(
    estimates: Mapping[str, float],
    calls: Mapping[str, int],
    few: Mapping[str, int],
    budget_s: float,
    settle_s: float,
) -> int:
    fixed = sum(rounds * estimates[name] for name, rounds in few.items())
    each = sum(
        max(settle_s, seconds) + seconds * calls[name]
        for name, seconds in estimates.items()
        if name not in few
    )
    fitting = (budget_s - fixed) / each if each else 0.0
    return int(min(max(fitting, LEAST_ROUNDS), MOST_ROUNDS))


def _seconds(run: Callable[[], object], calls: int, clock: Clock | None = None) -> float:
    clock = clock or time.perf_counter
    start = clock()
    for _ in range(calls):
        run()
    return clock() - start


def _sample_ms(run: Callable[[], object], calls: int, clock: Clock | None) -> float:
    return _seconds(run, calls, clock) / calls * 1e3
