"""Experiment 5: training a tensorized network from scratch, against tensorizing a trained one and
training on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from cells import Cells, mean_and_spread, shown
from matplotlib.figure import Figure
from page import arguments, markdown_table, plain_ticks, save_figure, write_page
from torch import nn
from tqdm import tqdm
from training import Data, accuracy, count, digits, fit

import tncompiler as tnc

NAME = "scratch"
WIDTH = 256
LAYERS = ("0", "2")  # the hidden layers
BUDGETS = (0.02, 0.05, 0.1)
FORMATS = ("TT", "TTMatrix", "CP", "LowRank")
SEEDS, EPOCHS = 3, 30  # epochs in all, of every way
WAYS = ("from scratch", "tensorized", "tensorized, then trained")
INTRO = f"""
A classifier 64 → {WIDTH} → {WIDTH} → 10 of the digits, both hidden layers as networks with a given
share of the dense weights. *From scratch*: {EPOCHS} epochs as a network. *Tensorized*: the dense
network trained for {EPOCHS // 2} epochs, its weights decomposed. *Tensorized, then trained*: the
same, and {EPOCHS // 2} epochs more, so that all that was trained had {EPOCHS} epochs. Test
accuracy, mean ± standard deviation of {SEEDS} seeds. The dense network reaches DENSE %.
"""


def dense_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def tensorized(model: nn.Sequential, name: str, budget: float) -> nn.Sequential:
    rule = tnc.Rule(getattr(tnc.formats, name)(), budget=budget)
    made, _ = tnc.tensorize(model, {layer: rule for layer in LAYERS}, progress=False)
    return made


def run(
    way: str, name: str, budget: float, seed: int, epochs: int, data: Data, half: Any
) -> dict[str, Any]:
    """Accuracy and parameters of the hidden layers, biases included. ``half``: gives the dense
    network after half of the epochs."""
    model = tensorized(half(seed), name, budget)
    if way == "from scratch":
        for layer in LAYERS:
            model[int(layer)].reset_parameters("relu")
        torch.manual_seed(seed)
        model[4].reset_parameters()
        fit(model, data, epochs=epochs, seed=seed)
    elif way == "tensorized, then trained":
        fit(model, data, epochs=epochs // 2, seed=seed + 100)
    parameters = sum(count(model[int(layer)]) for layer in LAYERS)
    return {"parameters": parameters, "accuracy": accuracy(model, data)}


def trained_half(data: Data, epochs: int) -> Callable[[int], nn.Sequential]:
    """The dense networks after half of the epochs, trained when they are first needed."""
    known: dict[int, nn.Sequential] = {}

    def of_seed(seed: int) -> nn.Sequential:
        if seed not in known:
            known[seed] = dense_model(seed)
            fit(known[seed], data, epochs=epochs // 2, seed=seed)
        return copy.deepcopy(known[seed])

    return of_seed


def dense_run(seed: int, epochs: int, data: Data) -> dict[str, Any]:
    model = dense_model(seed)
    fit(model, data, epochs=epochs, seed=seed)
    return {"parameters": count(model[0]) + count(model[2]), "accuracy": accuracy(model, data)}


Results = dict[tuple[str, float, str], list[dict[str, Any]]]


def table_of(results: Results) -> str:
    rows = []
    for name in FORMATS:
        for budget in BUDGETS:
            found = [results[name, budget, way] for way in WAYS]
            row = [f"{name}, {budget:.0%}", f"{found[0][0]['parameters']:,}"]
            rows.append(row + [shown([r["accuracy"] for r in cells]) for cells in found])
    return markdown_table(["format, share", "parameters", *WAYS], rows)


def figure_of(results: Results, dense: list[float]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(FORMATS), sharey=True), FORMATS, strict=True):
        for way, style in zip(WAYS, ("o-", "s:", "^-"), strict=True):
            cells = [results[name, budget, way] for budget in BUDGETS]
            stats = [mean_and_spread([100 * r["accuracy"] for r in each]) for each in cells]
            means, spreads = zip(*stats, strict=True)
            sizes = [each[0]["parameters"] for each in cells]
            axes.errorbar(sizes, means, spreads, fmt=style, ms=4, lw=1, capsize=2, label=way)
        axes.axhline(100 * mean_and_spread(dense)[0], color="0.5", lw=1, label="dense")
        axes.set(xscale="log", title=name, xlabel="parameters", ylim=(0, 101))
        plain_ticks(axes, (2000, 4000, 8000))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(fontsize=7, loc="lower right")
    return figure


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, epochs = (1, 2) if asked.quick else (SEEDS, EPOCHS)
    cells, data = Cells(asked.out / f"{NAME}.json"), digits()
    half = trained_half(data, epochs)
    dense = [
        cells.get({"dense": seed, "epochs": epochs}, lambda: dense_run(seed, epochs, data))  # noqa: B023
        for seed in range(seeds)
    ]
    asks = [(name, budget, way) for name in FORMATS for budget in BUDGETS for way in WAYS]
    results: Results = {ask: [] for ask in asks}
    for ask, seed in tqdm([(ask, seed) for seed in range(seeds) for ask in asks]):
        name, budget, way = ask
        of = {"format": name, "budget": budget, "way": way, "seed": seed, "epochs": epochs}
        make = lambda: run(way, name, budget, seed, epochs, data, half)  # noqa: B023, E731
        results[ask].append(cells.get(of, make))
    reached = [each["accuracy"] for each in dense]
    save_figure(figure_of(results, reached), asked.out, NAME)
    intro = INTRO.replace("DENSE", shown(reached))
    write_page(asked.out, NAME, "From scratch, or tensorized", intro, [table_of(results)])


if __name__ == "__main__":
    main()
