"""Results as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contest import CellResult
from benchmarks.measure import Timing
from benchmarks.peers import OURS, PEERS
from benchmarks.record import Change, Summary, summarise

_SLOW = "*"


def print_results(
    console: Console,
    results: Sequence[CellResult],
    skipped: Mapping[str, str],
    missing: Mapping[str, str],
    every_peer: bool = False,
) -> None:
    """Cells, peers, promises, and what is not there."""
    for part in dict.fromkeys(result.cell.part for result in results):
        own = [result for result in results if result.cell.part == part]
        console.print(cell_table(part, own))
        console.print(promise_table(part, summarise(own)))
    console.print(peer_table(results, missing))
    if every_peer:
        for result in results:
            console.print(contest_table(result))
    for name, why in skipped.items():
        console.print(f"not run: {name}: {why}", highlight=False, markup=False)


def cell_table(part: str, results: Sequence[CellResult]) -> Table:
    """A row for each cell: ours, the best peer, and their distance to the floor."""
    headline = results[0].headline
    table = Table(
        title=f"{part}: median ms (± quartile distance); {_SLOW} timed fewer rounds",
        caption="ratio: best peer / ours, above 1 we are faster; floor: share of our time that the "
        "fewest flops or bytes would take",
    )
    for column in ("cell", headline, "best peer", "", "ratio", "floor", "dense layer"):
        table.add_column(column, justify="left" if column in ("cell", "best peer") else "right")
    for result in results:
        best = result.best_peer
        table.add_row(
            result.cell.id.removesuffix(f"/{part}"),
            shown_entry(result, headline),
            best or "none",
            shown_entry(result, best),
            _number(result.ratio),
            _number(result.floor_fraction),
            shown_entry(result, "dense layer"),
            style=None if result.ratio is None or result.ratio >= 0.95 else "red",
        )
    return table


def shown_entry(result: CellResult, name: str | None) -> str:
    """A contestant's time, or its state where there is none."""
    entry = result.entries.get(name or "")
    if entry is None:
        return "–"
    if entry.timing is None:
        return "–" if entry.state in ("declined", "left out", "unavailable") else entry.state
    return shown_time(entry.timing)


def shown_time(timing: Timing) -> str:
    mark = _SLOW if timing.slow else ""
    return f"{timing.median_ms:.3g} ± {timing.spread_ms:.2g}{mark}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def promise_table(part: str, found: Summary) -> Table:
    """A part against what is promised."""
    step = part == "step"
    table = Table(title=f"{part}: what is promised")
    for column in ("what", "promised", "found"):
        table.add_column(column)
    ratio = f"{_number(found.mean_ratio)} over {found.far} of {found.cells} cells"
    table.add_row("mean ratio, best peer ≥ 2 floors", "≥ 1.6" if step else "≥ 1.5", ratio)
    table.add_row("least ratio", "≥ 0.95", _number(found.least_ratio))
    table.add_row(
        "median share of the floor", "≥ 0.5" if step else "≥ 0.6", _number(found.median_floor)
    )
    table.add_row("least share of the floor", "" if step else "≥ 0.4", _number(found.least_floor))
    table.add_row("cells below ratio 0.95", "none", str(len(found.slower)))
    table.add_row("cells above 1.05 × reconstruct", "none", str(len(found.dearer)))
    return table


def peer_table(results: Sequence[CellResult], missing: Mapping[str, str]) -> Table:
    """Everybody in the tables, with how many cells they did, and why not the others."""
    table = Table(title="contestants")
    for column in ("name", "timed", "best", "wrong", "failed", "why not"):
        table.add_column(column)
    best = Counter(result.best_peer for result in results)
    for name in (*OURS, *PEERS):
        entries = [r.entries[name] for r in results if name in r.entries]
        states = Counter(entry.state for entry in entries)
        reasons = Counter(e.why for e in entries if e.state != "timed")
        why = missing.get(name) or "; ".join(f"{n}× {w}" for w, n in reasons.most_common(3))
        counts = [str(states[state] or "") for state in ("timed", "wrong", "failed")]
        table.add_row(name, counts[0], str(best[name] or ""), *counts[1:], why)
    return table


def contest_table(result: CellResult) -> Table:
    """Everybody on one cell, the fastest first."""
    table = Table(title=result.cell.id)
    for column in ("contestant", "ms", "× floor", "prepare, ms", "off by"):
        table.add_column(column)
    timed = {n: e for n, e in result.entries.items() if e.timing is not None}
    for name, entry in sorted(timed.items(), key=lambda pair: pair[1].timing.median_ms):  # type: ignore[union-attr]
        assert entry.timing is not None
        floors = entry.timing.median_ms / result.floor.time_ms
        label = f"{name} (reference)" if entry.reference else name
        cells: list[Any] = [label, shown_time(entry.timing), f"{floors:.1f}"]
        table.add_row(*cells, f"{entry.prepare_ms:.0f}", f"{entry.off:.0e}")
    for name, entry in result.entries.items():
        if entry.timing is None:
            table.add_row(name, entry.state, "", "", entry.why)
    return table


def change_table(changes: Sequence[Change], earlier: str) -> Table:
    """Cells whose ratio moved, and how many did not."""
    moved = [change for change in changes if change.moved]
    table = Table(
        title=f"against {earlier}: best common peer / ours",
        caption=f"{len(moved)} of {len(changes)} cells moved beyond the spread",
    )
    for column in ("cell", "then", "now", "now / then", ""):
        table.add_column(column)
    for change in moved:
        verdict = "gained" if change.factor > 1 else "lost"
        cells = (f"{change.before:.2f}", f"{change.now:.2f}", f"{change.factor:.2f}", verdict)
        table.add_row(change.cell, *cells, style="green" if change.factor > 1 else "red")
    return table
