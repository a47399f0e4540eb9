"""Experiment 1: one tensorized hidden layer, all formats: parameters against accuracy on digits."""

from __future__ import annotations

from typing import Any

import torch
from cells import Cells, mean_and_spread, shown
from matplotlib.figure import Figure
from page import arguments, markdown_table, save_figure, write_page
from torch import nn
from tqdm import tqdm
from training import Data, accuracy, digits, fit

import tncompiler as tnc

NAME = "formats_mlp"
HIDDEN = 256
RANKS = (1, 2, 4, 8)
SEEDS, EPOCHS = 5, 30
FORMATS = (
    *("TT", "TTMatrix", "Tucker", "CP", "HT", "TensorRing"),
    *("BlockTerm", "Kronecker", "Monarch", "LowRank"),
)
INTRO = f"""
A multilayer perceptron 64 → {HIDDEN} → 10 on the handwritten digits of scikit-learn (8 × 8 pixels,
1,347 to train on, 450 to test on). Its hidden layer, 16,384 weights where it is dense, is a network
of cores, trained from scratch for {EPOCHS} epochs with Adam; output layer and biases are dense in
all of them. Mean ± standard deviation of {SEEDS} seeds.
"""


def model_of(format: Any, seed: int) -> nn.Sequential:
    """The classifier with a hidden layer of a format; dense where there is none."""
    torch.manual_seed(seed)
    hidden = nn.Linear(64, HIDDEN) if format is None else tnc.nn.Linear(64, HIDDEN, format=format)
    if format is not None:
        hidden.reset_parameters("relu")
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(HIDDEN, 10))


def run(format: Any, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """Train one model; parameters are the hidden layer's, without its bias."""
    model = model_of(format, seed)
    hidden = model[0]
    weights = HIDDEN * 64 if format is None else hidden.core_count()
    fit(model, data, epochs=epochs, seed=seed)
    return {"parameters": weights, "accuracy": accuracy(model, data)}


def table_of(results: dict[tuple[str, Any], list[dict[str, Any]]]) -> str:
    rows = [
        [
            f"{name}, rank {rank}" if rank else name,
            f"{cells[0]['parameters']:,}",
            f"{100 * cells[0]['parameters'] / (HIDDEN * 64):.1f}",
            shown([cell["accuracy"] for cell in cells]),
        ]
        for (name, rank), cells in results.items()
    ]
    headings = ["hidden layer", "weights", "% of dense", "test accuracy, %"]
    return markdown_table(headings, rows)


def figure_of(results: dict[tuple[str, Any], list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    markers = "osD^v<>Pp*"
    for name, marker in zip(FORMATS, markers, strict=True):
        found = sorted(
            (cells[0]["parameters"], *mean_and_spread([100 * c["accuracy"] for c in cells]))
            for (label, rank), cells in results.items()
            if label == name
        )
        sizes, means, spreads = zip(*found, strict=True)
        axes.errorbar(sizes, means, spreads, marker=marker, ms=5, lw=1, capsize=2, label=name)
    dense = [100 * cell["accuracy"] for cell in results["dense", None]]
    mean, spread = mean_and_spread(dense)
    axes.axhspan(mean - spread, mean + spread, color="0.85", label="dense (16,384)")
    axes.axhline(mean, color="0.4", lw=1)
    axes.set_xscale("log")
    axes.set_xlabel("weights in the hidden layer")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, epochs = (1, 2) if asked.quick else (SEEDS, EPOCHS)
    cells, data = Cells(asked.out / f"{NAME}.json"), digits()
    asks: list[tuple[str, Any]] = [("dense", None), *((f, r) for f in FORMATS for r in RANKS)]
    results: dict[tuple[str, Any], list[dict[str, Any]]] = {ask: [] for ask in asks}
    for (name, rank), seed in tqdm([(ask, seed) for ask in asks for seed in range(seeds)]):
        format = None if rank is None else getattr(tnc.formats, name)(rank=rank, clamp=True)
        of = {"format": name, "rank": rank, "seed": seed, "epochs": epochs}
        make = lambda: run(format, data, seed, epochs)  # noqa: B023, E731
        results[name, rank].append(cells.get(of, make))
    save_figure(figure_of(results), asked.out, NAME)
    title = "All formats on one hidden layer"
    write_page(asked.out, NAME, title, INTRO, [table_of(results)])


if __name__ == "__main__":
    main()
