"""One cell with all its contestants: prepared, checked, timed.

In: a cell, names of contestants, a budget. Out: a CellResult, in which everybody is named, with
times or with the reason why there are none.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agree import Wrong, check
from benchmarks.cases import Cell
from benchmarks.floor import Floor, Rates, floor_of
from benchmarks.measure import SLOW_S, THREADS_SETTLE_S, Timing, time_in_turn
from benchmarks.peers import HEADLINE, OURS, PEERS, load_peer
from benchmarks.peers.base import Contestant, Declined
from benchmarks.problems import Arrays, Problem, build_problem, draw_arrays
from benchmarks.reference import Outcome, oracle

PATIENCE_S = 60.0

STATES = ("timed", "wrong", "failed", "declined", "left out", "unavailable")


@dataclass(frozen=True, slots=True)
class Entry:
    """One contestant on one cell. ``state``: one of STATES; ``why``: what keeps it from 'timed'.

    ``off``: its difference from the oracle; ``prepare_ms``: everything before the first call.
    """

    state: str
    why: str = ""
    timing: Timing | None = None
    off: float | None = None
    prepare_ms: float | None = None
    reference: bool = False


@dataclass(frozen=True, slots=True)
class CellResult:
    """All entries of a cell, and its floor."""

    cell: Cell
    floor: Floor
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def median_ms(self, name: str) -> float | None:
        entry = self.entries.get(name)
        return entry.timing.median_ms if entry and entry.timing else None

    @property
    def headline(self) -> str:
        """Our contestant that the promises are about."""
        return HEADLINE[self.cell.part]

    @property
    def ours_ms(self) -> float | None:
        return self.median_ms(self.headline)

    @property
    def best_peer(self) -> str | None:
        """The fastest that computes the same from the same; None if there is none."""
        return self.best_of(PEERS)

    def best_of(self, names: Any) -> str | None:
        """The fastest of some peers, references left out."""
        timed = {
            name: entry.timing.median_ms
            for name, entry in self.entries.items()
            if name in names and entry.timing and not entry.reference
        }
        return min(timed, key=lambda name: timed[name]) if timed else None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer ours is."""
        best, ours = self.best_peer, self.ours_ms
        theirs = None if best is None else self.median_ms(best)
        return None if ours is None or theirs is None else theirs / ours

    @property
    def floor_fraction(self) -> float | None:
        return None if self.ours_ms is None else self.floor.time_ms / self.ours_ms


class TooSlow(RuntimeError):
    """A contestant took too long to start."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raise TooSlow after some seconds; a single call into C is waited for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(signum: int, frame: Any) -> None:
        raise TooSlow(f"took more than {seconds:.0f} s to start")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_cell(
    cell: Cell,
    rates: Rates,
    missing: Mapping[str, str],
    budget_s: float,
    slow_starters: bool = False,
    slow_s: float = SLOW_S,
    patience_s: float = PATIENCE_S,
    names: Sequence[str] = (*OURS, *PEERS),
) -> CellResult:
    """Prepare, check and time all contestants of a cell. Raises: CaseError.

    ``missing``: name → why, of those that cannot be used at all. ``slow_starters``: whether those
    are among them that take long to prepare. ``slow_s``: a call that takes longer is timed fewer
    rounds. ``patience_s``: for preparing one contestant and its first call.
    """
    start = time.perf_counter()
    problem = build_problem(cell)
    arrays = draw_arrays(problem)
    expected = oracle(problem, arrays)
    entries: dict[str, Entry] = {}
    runs: dict[str, Contestant] = {}
    for name in names:
        if name in missing:
            entries[name] = Entry("unavailable", missing[name])
            continue
        entries[name], contestant = _admit(
            name, problem, arrays, expected, slow_starters, patience_s
        )
        if contestant is not None:
            runs[name] = contestant
    left = budget_s - (time.perf_counter() - start)
    calls = {name: contestant.run for name, contestant in runs.items()}
    timings = time_in_turn(calls, left, slow_s, settle_s=THREADS_SETTLE_S)
    for name, timing in timings.items():
        old = entries[name]
        entries[name] = Entry("timed", "", timing, old.off, old.prepare_ms, old.reference)
    return CellResult(cell, floor_of(problem, rates), entries)


def _admit(
    name: str,
    problem: Problem,
    arrays: Arrays,
    expected: Outcome,
    slow_starters: bool = False,
    patience_s: float = PATIENCE_S,
) -> tuple[Entry, Contestant | None]:
    """A contestant that computes the right thing, or why there is none."""
    peer = load_peer(name)
    if (why := peer.supports(problem)) is not None:
        return Entry("declined", why), None
    if problem.windows and not peer.convolves:
        return Entry("declined", "has no such convolution"), None
    if peer.slow_start and not slow_starters:
        return Entry("left out", "takes long to start; --all and marked cells have it"), None
    start = time.perf_counter()
    try:
        with patience(patience_s):
            contestant = peer.prepare(problem, arrays)
            prepare_ms = (time.perf_counter() - start) * 1e3
            found = contestant.read(contestant.run())
        off = check(problem, found, expected, partial=peer.reference)
    except Declined as error:
        return Entry("declined", str(error)), None
    except Wrong as error:
        return Entry("wrong", str(error)), None
    except Exception as error:  # a peer may fail in any way; it is reported, not hidden
        return Entry("failed", f"{type(error).__name__}: {error}"[:300]), None
    return Entry("timed", "", None, off, prepare_ms, peer.reference), contestant


def find_missing(names: Sequence[str] = (*OURS, *PEERS)) -> dict[str, str]:
    """Name → why, of the contestants that cannot be loaded here."""
    missing = {}
    for name in names:
        try:
            why = load_peer(name).available()
        except Exception as error:  # a peer's file may import what is not there
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            missing[name] = why
    return missing
