"""What the demo leaves behind: a table, training curves, each format's pictures and code."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import networks
import numpy as np
from digits import Run
from matplotlib.axes import Axes
from networks import Hidden
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from timing import Comparison

import tncompiler as tnc

ENOUGH_FOR_INTERVAL = 5  # seeds; below, the standard deviation is shown
PARAMETER_BUDGET = 0.10  # of the dense layer's
ACCURACY_BUDGET = 0.01

CAPTION = """\
ms: one training step (forward, loss, backward), {batch} images, {threads} thread{s}
einsum: the same network and parameters by torch.einsum, timed in turn
ratio: einsum / compiled; above 1 the compiled step is faster."""


@dataclass(frozen=True, slots=True)
class Result:
    """Everything measured of one format."""

    hidden: Hidden
    parameters: int
    runs: tuple[Run, ...]
    comparison: Comparison

    @property
    def accuracies(self) -> list[float]:
        return [run.accuracies[-1] for run in self.runs]

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Half the 95 % confidence interval of the mean, or the standard deviation of few seeds."""
        count = len(self.runs)
        if count < 2:
            return 0.0
        deviation = statistics.stdev(self.accuracies)
        if count < ENOUGH_FOR_INTERVAL:
            return deviation
        return float(student.ppf(0.975, count - 1)) * deviation / math.sqrt(count)

    @property
    def slug(self) -> str:
        return self.hidden.name.lower().replace(" ", "_").replace("-", "_")


# Table ------------------------------------------------------------------------------------------


def table(results: Sequence[Result], batch: int, threads: int) -> Table:
    """One line for each format; the first result is the dense layer."""
    dense = results[0]
    seeds = len(dense.runs)
    spread = "95 % CI" if seeds >= ENOUGH_FOR_INTERVAL else "std"
    made = Table(
        title=f"Digits 8×8, hidden layer 64 → 512: {seeds} seed{'s' if seeds > 1 else ''}",
        caption=CAPTION.format(batch=batch, threads=threads, s="s" if threads > 1 else ""),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("format", no_wrap=True)
    accuracy = f"accuracy, %\nmean ± {spread}"
    for heading in ("hidden\nparams", "com-\npression", accuracy, "compiled\nms", "einsum\nms"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("ratio", justify="right", no_wrap=True)
    for result in results:
        made.add_row(*_row(result, dense))
    return made


def _row(result: Result, dense: Result) -> tuple[str, ...]:
    times = result.comparison
    return (
        result.hidden.name,
        str(result.parameters),
        f"{dense.parameters / result.parameters:.1f}×",
        f"{100 * result.accuracy:.2f} ± {100 * result.spread:.2f}",
        f"{times.compiled_ms:.2f}",
        f"{times.einsum_ms:.2f}",
        f"{times.ratio:.2f}",
    )


def good_compressions(results: Sequence[Result]) -> list[str]:
    """Formats within a tenth of the dense parameters and within one point of its accuracy."""
    dense = results[0]
    return [
        result.hidden.name
        for result in results[1:]
        if result.parameters <= PARAMETER_BUDGET * dense.parameters
        and result.accuracy >= dense.accuracy - ACCURACY_BUDGET
    ]


def slower_steps(results: Sequence[Result]) -> list[str]:
    """Formats whose compiled step takes longer than torch.einsum's."""
    return [result.hidden.name for result in results if result.comparison.ratio < 1]


def write_table(made: Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        Console(file=file, width=100).print(made)


def write_results(results: Sequence[Result], settings: dict[str, Any], path: Path) -> None:
    """All numbers as JSON."""
    record = {
        "settings": settings,
        "formats": {result.hidden.name: _record(result, results[0]) for result in results},
        "small_and_accurate": good_compressions(results),
        "slower_than_einsum": slower_steps(results),
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _record(result: Result, dense: Result) -> dict[str, Any]:
    times = result.comparison
    return {
        "parameters": result.parameters,
        "compression": dense.parameters / result.parameters,
        "accuracy": result.accuracy,
        "spread": result.spread,
        "accuracies": result.accuracies,
        "compiled_ms": times.compiled_ms,
        "einsum_ms": times.einsum_ms,
        "ratio": times.ratio,
        "loss_difference": times.loss_difference,
        "gradient_difference": times.gradient_difference,
    }


# Pictures and code ------------------------------------------------------------------------------


def draw_curves(results: Iterable[Result], path: Path) -> None:
    """Training loss and test error of all formats by epoch: the mean, and a band over the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for result in results:
        name = f"{result.hidden.name} ({result.parameters})"
        _curve(left, [run.losses for run in result.runs], name)
        _curve(right, [[100 * (1 - a) for a in run.accuracies] for run in result.runs], name)
    left.set(title="training loss", yscale="log", xlabel="epoch", ylabel="cross-entropy")
    right.set(title="test error", yscale="log", xlabel="epoch", ylabel="%")
    right.set_yticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"])
    right.minorticks_off()
    right.legend(title="hidden layer (parameters)", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curve(axes: Axes, curves: Sequence[Sequence[float]], name: str) -> None:
    values = np.array(curves)
    epochs = np.arange(1, values.shape[1] + 1)
    (line,) = axes.plot(epochs, values.mean(axis=0), label=name)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def write_network(result: Result, batch: int, directory: Path) -> None:
    """Network, contraction tree, and the generated forward and backward of one format."""
    directory.mkdir(parents=True, exist_ok=True)
    model = tnc.compile(networks.classify(result.hidden.expression), seed=0)
    sizes = {networks.b: batch}
    for what in ("network", "tree"):
        figure = model.draw(what, sizes=sizes).figure
        figure.savefig(directory / f"{what}.png", dpi=130, bbox_inches="tight")
        plt.close(figure)
    trainable = [name for name, _ in model.named_parameters()]
    for part in ("forward", "backward"):
        code = model.source(sizes=sizes, part=part, backend="torch", wrt=trainable)
        (directory / f"{part}.py").write_text(code, encoding="utf-8")
