"""Results as pictures: every cell's distance to the floor, and ours beside the best peer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import CellResult

_COLORS = {"forward": "tab:blue", "step": "tab:orange"}


def draw_plots(results: Sequence[CellResult], directory: Path) -> list[Path]:
    """Write the pictures; cells without a time of ours or of a peer are left out."""
    import matplotlib

    matplotlib.use("Agg")
    shown = [r for r in results if r.ratio is not None]
    if not shown:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "floor.png"]
    _draw_floors(shown, paths[0])
    for part in dict.fromkeys(result.cell.part for result in shown):
        paths.append(directory / f"{part}.png")
        _draw_bars([r for r in shown if r.cell.part == part], paths[-1])
    return paths


def _draw_floors(results: Sequence[CellResult], path: Path) -> None:
    """Ours over the floor against the best peer over the floor."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    for part, color in _COLORS.items():
        own = [r for r in results if r.cell.part == part]
        theirs = [_best_ms(r) / r.floor.time_ms for r in own]
        ours = [(r.ours_ms or 0.0) / r.floor.time_ms for r in own]
        axes.scatter(theirs, ours, s=18, color=color, alpha=0.7, label=part)
    low, high = axes.get_xlim()[0], max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.set(xscale="log", yscale="log", xlabel="best peer / floor", ylabel="ours / floor")
    ends = [max(low, 0.5), high]
    axes.plot(ends, ends, color="gray", linewidth=1, label="as fast as the best peer")
    axes.axhline(1.0, color="black", linewidth=1)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_bars(results: Sequence[CellResult], path: Path) -> None:
    """Milliseconds of ours, the best peer and the floor, a group of bars for each cell."""
    from matplotlib import pyplot

    height = 1.0 + 0.32 * len(results)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    rows = [len(results) - k for k in range(len(results))]
    series = {
        "ours": [r.ours_ms or 0.0 for r in results],
        "best peer": [_best_ms(r) for r in results],
        "floor": [r.floor.time_ms for r in results],
    }
    for k, (name, values) in enumerate(series.items()):
        axes.barh([row - 0.27 * (k - 1) for row in rows], values, height=0.25, label=name)
    labels = [f"{r.cell.id.rpartition('/')[0]}  ({r.best_peer})" for r in results]
    axes.set_yticks(rows, labels, fontsize=7)
    axes.set(xscale="log", xlabel="ms", ylim=(0.3, len(results) + 0.7))
    axes.set_title(results[0].cell.part, loc="right")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _best_ms(result: CellResult) -> float:
    best = result.best_peer
    return (None if best is None else result.median_ms(best)) or 0.0
