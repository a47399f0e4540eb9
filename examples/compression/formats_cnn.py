"""Experiment 2: formats for the kernels of a convolutional network: parameters against accuracy."""

from __future__ import annotations

from typing import Any

import torch
from cells import Cells, mean_and_spread, shown
from matplotlib.figure import Figure
from page import arguments, markdown_table, plain_ticks, save_figure, write_page
from torch import nn
from tqdm import tqdm
from training import Data, accuracy, digits, fit

import tncompiler as tnc

NAME = "formats_cnn"
CHANNELS = (1, 16, 32, 32)
KERNELS = ("2", "5")  # the convolutions that become networks; the first one has 144 weights
BUDGETS = (0.05, 0.1, 0.25)
FORMATS = ("TT", "TTMatrix", "Tucker", "CP", "TensorRing", "LowRank", "Kronecker")
SEEDS, EPOCHS = 3, 12
INTRO = f"""
A convolutional network on the digits as images of 8 × 8: three 3 × 3 convolutions with
{CHANNELS[1]}, {CHANNELS[2]} and {CHANNELS[3]} channels, a pooling by two after the second, and one
dense layer. The kernels of the second and third convolution, 13,824 weights where they are dense,
are networks, of ranks that come to a given share of them, trained from scratch for {EPOCHS} epochs.
Test accuracy, mean ± standard deviation of {SEEDS} seeds.
"""


def dense_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    a, b, c, d = CHANNELS
    return nn.Sequential(
        *(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * d, 10)),
    )


def run(name: str, budget: float | None, seed: int, epochs: int, data: Data) -> dict[str, Any]:
    """Parameters of the two kernels, biases left out, and accuracy."""
    model = dense_model(seed)
    if budget is not None:
        rule = tnc.Rule(getattr(tnc.formats, name)(), budget=budget)
        tnc.tensorize_(model, {layer: rule for layer in KERNELS}, progress=False)
        for layer in KERNELS:
            model[int(layer)].reset_parameters("relu")
    kernels = [model[int(layer)] for layer in KERNELS]
    sizes = [k.weight.numel() if budget is None else k.core_count() for k in kernels]
    fit(model, data, epochs=epochs, seed=seed)
    return {"parameters": sum(sizes), "accuracy": accuracy(model, data)}


Results = dict[tuple[str, float | None], list[dict[str, Any]]]


def table_of(results: Results) -> str:
    rows = [
        [
            name if budget is None else f"{name}, {budget:.0%}",
            f"{cells[0]['parameters']:,}",
            shown([cell["accuracy"] for cell in cells]),
        ]
        for (name, budget), cells in results.items()
    ]
    return markdown_table(["kernels", "weights", "test accuracy, %"], rows)


def figure_of(results: Results) -> Figure:
    figure = Figure(figsize=(7.5, 4.5))
    axes = figure.subplots()
    for name, marker in zip(FORMATS, "osD^v<>", strict=True):
        found = sorted(
            (cells[0]["parameters"], *mean_and_spread([100 * c["accuracy"] for c in cells]))
            for (label, _), cells in results.items()
            if label == name
        )
        sizes, means, spreads = zip(*found, strict=True)
        axes.errorbar(sizes, means, spreads, marker=marker, ms=5, lw=1, capsize=2, label=name)
    mean, spread = mean_and_spread([100 * c["accuracy"] for c in results["dense", None]])
    axes.axhspan(mean - spread, mean + spread, color="0.85", label="dense (13,824)")
    axes.axhline(mean, color="0.4", lw=1)
    axes.set(xscale="log", xlabel="weights in the two kernels", ylabel="test accuracy, %")
    plain_ticks(axes, (500, 1000, 2000, 3000))
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, epochs = (1, 1) if asked.quick else (SEEDS, EPOCHS)
    cells, data = Cells(asked.out / f"{NAME}.json"), digits(image=True)
    asks: list[tuple[str, float | None]] = [("dense", None)]
    asks += [(name, budget) for name in FORMATS for budget in BUDGETS]
    results: Results = {ask: [] for ask in asks}
    for ask, seed in tqdm([(ask, seed) for seed in range(seeds) for ask in asks]):
        name, budget = ask
        of = {"format": name, "budget": budget, "seed": seed, "epochs": epochs}
        make = lambda: run(name, budget, seed, epochs, data)  # noqa: B023, E731
        results[ask].append(cells.get(of, make))
    save_figure(figure_of(results), asked.out, NAME)
    title = "Formats for the kernels of a CNN"
    write_page(asked.out, NAME, title, INTRO, [table_of(results)])


if __name__ == "__main__":
    main()
