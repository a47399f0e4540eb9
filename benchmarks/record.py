"""Results as JSON, and a run compared with an earlier one.

Ratios of two runs compare, milliseconds do not: the machine is another every time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.contest import CellResult, Entry
from benchmarks.floor import Rates
from benchmarks.peers import OURS, PEERS, RECONSTRUCTION

SCHEMA = 1
MOVED = 1.1  # a ratio of ratios beyond this, and beyond the spread, counts as moved
FAR = 2  # floors that the best peer takes at least in cells that count for the mean ratio


class RecordError(ValueError):
    """A file of an earlier run that cannot be read: which, why, and how to mend it."""


# ---------------------------------------------------------------------------- writing


def as_record(
    results: Sequence[CellResult],
    machine: Mapping[str, Any],
    rates: Rates,
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Everything of a run, as JSON takes it."""
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "rates": asdict(rates),
        "summary": summary(results),
        "cells": [_cell_record(result) for result in results],
        "skipped": dict(skipped),
    }


def _cell_record(result: CellResult) -> dict[str, Any]:
    return {
        "id": result.cell.id,
        "fingerprint": result.cell.case.fingerprint,
        "part": result.cell.part,
        "floor": asdict(result.floor),
        "headline": result.headline,
        "best_peer": result.best_peer,
        "ratio": result.ratio,
        "floor_fraction": result.floor_fraction,
        "entries": {name: _entry_record(entry) for name, entry in result.entries.items()},
    }


def _entry_record(entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"state": entry.state, "why": entry.why}
    if entry.timing is not None:
        record |= {
            "median_ms": entry.timing.median_ms,
            "spread_ms": entry.timing.spread_ms,
            "samples_ms": list(entry.timing.samples_ms),
            "calls": entry.timing.calls,
            "slow": entry.timing.slow,
            "off": entry.off,
            "prepare_ms": entry.prepare_ms,
            "reference": entry.reference,
        }
    return record


def write_record(record: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------- the promises


@dataclass(frozen=True, slots=True)
class Summary:
    """One part against the promises; None where no cell counts.

    ``mean_ratio``: geometric mean of best peer / ours over the ``far`` cells, those whose best peer
    takes at least twice the floor. ``slower``: cells with a ratio below 0.95. ``dearer``: cells
    where ours takes more than 1.05 times what reconstructing the weight takes.
    """

    cells: int
    mean_ratio: float | None
    far: int
    least_ratio: float | None
    median_floor: float | None
    least_floor: float | None
    slower: tuple[str, ...]
    dearer: tuple[str, ...]


def summarise(results: Sequence[CellResult]) -> Summary:
    """What the promises ask of a part's cells."""
    ratios = {r.cell.id: r.ratio for r in results if r.ratio is not None}
    floors = [r.floor_fraction for r in results if r.floor_fraction is not None]
    far = [r.ratio for r in results if r.ratio is not None and _is_far(r)]
    return Summary(
        cells=len(results),
        mean_ratio=exp(fmean(map(log, far))) if far else None,
        far=len(far),
        least_ratio=min(ratios.values(), default=None),
        median_floor=median(floors) if floors else None,
        least_floor=min(floors, default=None),
        slower=tuple(name for name, ratio in ratios.items() if ratio < 0.95),
        dearer=tuple(r.cell.id for r in results if _is_dearer(r)),
    )


def summary(results: Sequence[CellResult]) -> dict[str, Any]:
    """A summary for each part that was run."""
    parts = dict.fromkeys(result.cell.part for result in results)
    return {part: asdict(summarise([r for r in results if r.cell.part == part])) for part in parts}


def _is_far(result: CellResult) -> bool:
    best = None if result.best_peer is None else result.median_ms(result.best_peer)
    return best is not None and best >= FAR * result.floor.time_ms


def _is_dearer(result: CellResult) -> bool:
    best = result.best_of(RECONSTRUCTION)
    theirs = None if best is None else result.median_ms(best)
    return theirs is not None and result.ours_ms is not None and result.ours_ms > 1.05 * theirs


# ---------------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class Change:
    """A cell in two runs: best peer / ours then and now, over the peers that both timed.

    ``factor`` above 1: ours gained. ``moved``: by more than MOVED and the spread of both runs.
    """

    cell: str
    before: float
    now: float
    noise: float

    @property
    def factor(self) -> float:
        return self.now / self.before

    @property
    def moved(self) -> bool:
        return abs(log(self.factor)) > max(log(MOVED), self.noise)


def read_record(path: Path) -> dict[str, Any]:
    """A run that was written before. Raises: RecordError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "give the results.json of an earlier run"
        raise RecordError(f"{path} cannot be read: {error}\n  fix: {fix}") from None
    except ValueError as error:
        raise RecordError(f"{path} is no JSON: {error}\n  fix: run the bench again") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        what = f"{path} has schema {found!r}, not {SCHEMA}"
        raise RecordError(f"{what}\n  fix: run the bench again at that commit")
    return record


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The cells that both runs have, those that changed most first."""
    old = {cell["id"]: cell for cell in before["cells"]}
    changes = []
    for cell in now["cells"]:
        other = old.get(cell["id"])
        if other is not None and other["fingerprint"] == cell["fingerprint"]:
            changes += _change(other, cell)
    return sorted(changes, key=lambda change: -abs(log(change.factor)))


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The change of one cell; none where ours or every common peer lacks a time."""
    timed = [_timed(cell["entries"]) for cell in (before, now)]
    name = now["headline"]
    common = [p for p in timed[0] if p in timed[1] and p in PEERS and not timed[1][p]["reference"]]
    if not common or any(name not in entries for entries in timed):
        return []
    ratios, noise = [], 0.0
    for entries in timed:
        best = min(common, key=lambda peer: entries[peer]["median_ms"])
        ratios.append(entries[best]["median_ms"] / entries[name]["median_ms"])
        noise += _relative(entries[best]) + _relative(entries[name])
    return [Change(now["id"], ratios[0], ratios[1], noise / 2)]


def _timed(entries: Mapping[str, Any]) -> dict[str, Any]:
    known = {*OURS, *PEERS}
    return {k: e for k, e in entries.items() if k in known and e["state"] == "timed"}


def _relative(entry: Mapping[str, Any]) -> float:
    return float(entry["spread_ms"] / entry["median_ms"])
