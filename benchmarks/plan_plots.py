"""Predicted against measured time as pictures: a small plot for each network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLUMNS = 6
_COLORS = {"numpy": "tab:blue", "torch": "tab:orange"}


def draw_plans(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write plan_forward.png, plan_step.png, plan_memory.png and plan_families.png."""
    import matplotlib

    matplotlib.use("Agg")
    paths = []
    for part in ("forward", "step"):
        paths.append(directory / f"plan_{part}.png")
        _draw_part(record["races"], part, paths[-1])
    for name, draw in (("memory", _draw_memory), ("families", _draw_families)):
        paths.append(directory / f"plan_{name}.png")
        draw(record[name], paths[-1])
    return paths


def _draw_part(races: list[Mapping[str, Any]], part: str, path: Path) -> None:
    from matplotlib import pyplot

    rows = math.ceil(len(races) / _COLUMNS)
    figure, grid = pyplot.subplots(
        rows, _COLUMNS, figsize=(2.1 * _COLUMNS, 2.1 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(races) :]:
        axes.axis("off")
    for race, axes in zip(races, grid.flat, strict=False):
        _draw_race(race, part, axes)
    figure.supxlabel("predicted, µs")
    figure.supylabel("measured, µs (blue: NumPy, orange: torch; star: chosen)")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_race(race: Mapping[str, Any], part: str, axes: Any) -> None:
    for backend, color in _COLORS.items():
        key = f"{backend} {part}"
        x = [tree["predicted_us"][key] for tree in race["trees"]]
        y = [tree["measured_us"][key] for tree in race["trees"]]
        axes.scatter(x, y, s=9, color=color, alpha=0.8)
        chosen = race["chosen"][f"time, {part}"]
        axes.scatter(x[chosen], y[chosen], s=70, color=color, marker="*", edgecolor="black")
    axes.axline((x[0], x[0]), slope=1, color="gray", linewidth=0.7)
    axes.set(xscale="log", yscale="log")
    axes.set_title(race["name"], fontsize=8)
    _mark_ends(axes.xaxis, axes.get_xlim())
    _mark_ends(axes.yaxis, axes.get_ylim())
    axes.tick_params(labelsize=6)


def _mark_ends(axis: Any, limits: tuple[float, float]) -> None:
    """Two labels, near the ends of a short logarithmic axis: more would overlap."""
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    low, high = (math.log10(limit) for limit in limits)
    places = [10 ** (low + share * (high - low)) for share in (0.15, 0.85)]
    axis.set_major_locator(FixedLocator([float(f"{place:.2g}") for place in places]))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_locator(NullLocator())


def _draw_memory(points: list[Mapping[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    for kind, marker in (("predicted", "o-"), ("measured", "s--")):
        x = [point[f"{kind}_bytes"] / 2**20 for point in points]
        axes.plot(x, [point[f"{kind}_us"] / 1e3 for point in points], marker, label=kind)
    axes.set(xlabel="peak of the training step, MiB", ylabel="time of the step, ms", ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_families(members: list[Mapping[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    layers = list(dict.fromkeys(member["layer"] for member in members))
    figure, grid = pyplot.subplots(
        1, len(layers), figsize=(2.9 * len(layers), 2.9), squeeze=False, layout="constrained"
    )
    for layer, axes in zip(layers, grid.flat, strict=True):
        for member in (m for m in members if m["layer"] == layer):
            sizes, times = zip(*member["curve"], strict=True)
            axes.plot(sizes, [t / n for n, t in zip(sizes, times, strict=True)], ".-")
            axes.axvline(member["low"], color="gray", linewidth=0.6)
        axes.set(xscale="log", yscale="log", title=layer, xlabel="batch")
    grid.flat[0].set_ylabel("predicted µs of a step, per row")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
