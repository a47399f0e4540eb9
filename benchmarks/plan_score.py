"""How well predicted times order the trees of a network, and what choosing by them costs.

In: races. Out: a `Score` for each network, backend and part; a `Gain` for each training step; the
summary that `DESIGN.md` promises figures of.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.plan_race import BACKENDS, PARTS, Race

FEWEST_TREES = 12
LEAST_SPAN = 3.0


@dataclass(frozen=True, slots=True)
class Score:
    """``span``: slowest over fastest tree. ``spearman``: rank correlation of predicted and measured
    time, where there are trees enough that far apart. ``regret``: measured time of the chosen tree
    over the fastest, chosen by time or by flops.
    """

    network: str
    backend: str
    part: str
    trees: int
    span: float
    best_us: float
    spearman: float | None
    regret: float
    flops_regret: float


@dataclass(frozen=True, slots=True)
class Gain:
    """A training step in an order chosen forward only, over the one chosen for the whole step.

    ``minimize``: what the forward-only order was chosen by. Above 1 the planner for training gains.
    """

    network: str
    backend: str
    minimize: str
    flops: float
    predicted: float
    measured: float


def scores(races: Iterable[Race]) -> list[Score]:
    """A score for each network, backend and part."""
    return [_score(r, backend, part) for r in races for backend in BACKENDS for part in PARTS]


def _score(race: Race, backend: str, part: str) -> Score:
    key = f"{backend} {part}"
    measured = [tree.measured_us[key] for tree in race.trees]
    predicted = [tree.predicted_us[key] for tree in race.trees]
    best = min(measured)
    span = max(measured) / best
    wide = len(measured) >= FEWEST_TREES and span >= LEAST_SPAN
    return Score(
        race.name,
        backend,
        part,
        len(measured),
        span,
        best,
        float(spearmanr(predicted, measured).statistic) if wide else None,
        measured[race.chosen[f"time, {part}"]] / best,
        measured[race.chosen[f"flops, {part}"]] / best,
    )


def gains(races: Iterable[Race]) -> list[Gain]:
    """What choosing orders for the whole step gains over reversing a forward order."""
    return [
        _gain(r, backend, minimize)
        for r in races
        for backend in BACKENDS
        for minimize in ("flops", "time")
    ]


def _gain(race: Race, backend: str, minimize: str) -> Gain:
    ours = race.trees[race.chosen["time, step"]]
    theirs = race.trees[race.chosen[f"{minimize}, forward"]]
    key = f"{backend} step"
    return Gain(
        race.name,
        backend,
        minimize,
        theirs.flops["step"] / ours.flops["step"],
        theirs.predicted_us[key] / ours.predicted_us[key],
        theirs.measured_us[key] / ours.measured_us[key],
    )


def summarise(found: Sequence[Score]) -> list[dict[str, Any]]:
    """For each backend and part: correlation and regret, as they are promised."""
    rows = []
    for backend in BACKENDS:
        for part in PARTS:
            own = [s for s in found if (s.backend, s.part) == (backend, part)]
            if own:
                rows.append({"backend": backend, "part": part, **_summary(own)})
    return rows


def _summary(own: Sequence[Score]) -> dict[str, Any]:
    ranks = [s.spearman for s in own if s.spearman is not None]
    return {
        "networks": len(own),
        "ranked": len(ranks),
        "spearman": statistics.median(ranks) if ranks else None,
        "least_spearman": min(ranks, default=None),
        "regret": statistics.median(s.regret for s in own),
        "regret_95": float(np.percentile([s.regret for s in own], 95)),
        "flops_regret": statistics.median(s.flops_regret for s in own),
        "flops_regret_95": float(np.percentile([s.flops_regret for s in own], 95)),
    }


def mean_gain(found: Iterable[Gain], backend: str, minimize: str) -> float:
    """The geometric mean of measured gains."""
    logs = [math.log(g.measured) for g in found if (g.backend, g.minimize) == (backend, minimize)]
    return math.exp(statistics.fmean(logs)) if logs else math.nan
