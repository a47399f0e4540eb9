"""Experiment 6: the bond channels of a digits classifier: what each responds to, what is lost
without it, and whether another seed finds the same ones."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from cells import Cells, mean_and_spread, shown
from matplotlib.figure import Figure
from page import arguments, markdown_table, save_figure, write_page
from scipy.optimize import linear_sum_assignment
from torch import nn
from tqdm import tqdm
from training import Data, accuracy, digits, fit

import tncompiler as tnc

NAME = "bond_channels"
HIDDEN, RANK = 256, 8
BOND = "r3"  # between inputs and outputs: all that the hidden layer knows of an image
SEEDS, EPOCHS = 6, 30
TOP = 5
GAUGES = ("as trained", "canonical")
INTRO = f"""
The hidden layer of a classifier 64 → {HIDDEN} → 10 of the digits is a tensor train of rank {RANK}.
Its bond {BOND} cuts inputs from outputs: the {RANK} numbers that flow through it are all that the
hidden layer learns about an image. `tnc.interpret.canonicalize` orders them by singular value. Six
seeds; the pictures are of the first one. *Share*: of the squared norm, from
`tnc.interpret.spectrum`. *Loss without*: test accuracy lost, in points, when
`tnc.interpret.ablate` leaves the channel out. *Alike*: channels of two seeds are paired so that
`tnc.interpret.similarity` (squared correlation over the test digits) is largest.
"""


def trained(seed: int, data: Data, epochs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = tnc.nn.Linear(64, HIDDEN, format=tnc.formats.TT(RANK, clamp=True))
    hidden.reset_parameters("relu")
    model = nn.Sequential(hidden, nn.ReLU(), nn.Linear(HIDDEN, 10))
    fit(model, data, epochs=epochs, seed=seed)
    return model


def seed_run(seed: int, data: Data, epochs: int) -> dict[str, Any]:
    return channels_of(trained(seed, data, epochs), data)


@torch.no_grad()
def channels_of(model: nn.Sequential, data: Data) -> dict[str, Any]:
    """All that is said about one model: activations are those on the test digits."""
    hidden, whole = model[0], accuracy(model, data)
    spectrum = tnc.interpret.spectrum(hidden, BOND)
    found: dict[str, Any] = {
        "accuracy": whole,
        "shares": spectrum.weights.tolist(),
        "effective rank": spectrum.effective_rank,
    }
    for gauge in GAUGES:
        layer = hidden if gauge == "as trained" else tnc.interpret.canonicalize(hidden)
        seen = tnc.interpret.capture(layer, BOND, data.test_x)
        lost, by_digit = zip(*(_without(model, layer, k, data) for k in range(RANK)), strict=True)
        found[gauge] = {
            "values": np.round(seen.values.double().numpy(), 3).tolist(),
            "responses": _responses(seen.channels, data.test_y).tolist(),
            "lost": [whole - each for each in lost],
            "right without": by_digit,
            "top": tnc.interpret.top_inputs(layer, BOND, data.test_x, count=TOP).examples.tolist(),
        }
    return found


def _without(
    model: nn.Sequential, layer: Any, channel: int, data: Data
) -> tuple[float, list[float]]:
    """Accuracy without a channel, in all and for each digit."""
    less = nn.Sequential(tnc.interpret.ablate(layer, BOND, channel), *model[1:])
    hits = less(data.test_x).argmax(1) == data.test_y
    by_digit = [float(hits[data.test_y == k].double().mean()) for k in range(10)]
    return accuracy(less, data), by_digit


def _responses(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean activation for each digit, in standard deviations of the channel."""
    means = torch.stack([values[labels == digit].mean(0) for digit in range(10)], 1)
    return (means - values.mean(0)[:, None]) / values.std(0)[:, None]


def alike(first: Any, second: Any) -> list[float]:
    """How alike the channels of two models are, in pairs that go together best."""
    one, other = (
        tnc.interpret.Activations(BOND, ("b", BOND), (), torch.tensor(v), torch.empty(0))
        for v in (first, second)
    )
    table = tnc.interpret.similarity(one, other).numpy()
    rows, columns = linear_sum_assignment(-table)
    return [float(table[r, c]) for r, c in zip(rows, columns, strict=True)]


def subspace(first: Any, second: Any) -> float:
    """How much of what one bond says about the digits the other says as well: the mean squared
    canonical correlation, which no gauge changes."""
    bases = [np.linalg.qr(np.array(v) - np.mean(v, axis=0))[0] for v in (first, second)]
    return float(np.square(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)).mean())


def channel_table(models: list[dict[str, Any]]) -> str:
    rows = []
    for k in range(RANK):
        shares = [model["shares"][k] for model in models]
        row = [str(k), shown(shares)]
        row += [shown([m[gauge]["lost"][k] for m in models]) for gauge in GAUGES]
        response = np.array(models[0]["canonical"]["responses"][k])
        strongest = np.argsort(-np.abs(response))[:3]
        row.append(", ".join(f"{d} ({response[d]:+.1f})" for d in strongest))
        rows.append(row)
    headings = ["channel", "share, %", *(f"loss without, {gauge}" for gauge in GAUGES)]
    return markdown_table([*headings, "digits it tells apart most (first seed)"], rows)


def stability_table(models: list[dict[str, Any]]) -> str:
    pairs = [*combinations(models, 2)]
    chance = chance_alike(models)
    rows = []
    for gauge in GAUGES:
        found = [alike(a[gauge]["values"], b[gauge]["values"]) for a, b in pairs]
        best = [max(each) for each in found]
        rows.append([gauge, shown([float(np.mean(f)) for f in found], 1, 2), shown(best, 1, 2)])
    rows.append(["random directions of the same space", shown(chance, 1, 2), "–"])
    values = [model["as trained"]["values"] for model in models]
    spaces = [subspace(a, b) for a, b in combinations(values, 2)]
    rows.append(["the space of all channels (any gauge)", shown(spaces, 1, 2), "–"])
    return markdown_table(["channels of two seeds", "alike, mean", "alike, best pair"], rows)


def chance_alike(models: list[dict[str, Any]]) -> list[float]:
    """What two seeds would share if each took random directions within its own space."""
    rng = np.random.default_rng(0)
    found = []
    for a, b in combinations(models, 2):
        turned = []
        for model in (a, b):
            values = np.array(model["canonical"]["values"])
            basis = np.linalg.qr(values - values.mean(0))[0]
            turned.append(basis @ np.linalg.qr(rng.standard_normal((RANK, RANK)))[0])
        found.append(float(np.mean(alike(*(t.tolist() for t in turned)))))
    return found


def figure_of(models: list[dict[str, Any]], data: Data) -> Figure:
    figure = Figure(figsize=(12, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    _responses_and_losses(upper, models)
    grid = lower.subplots(TOP, RANK)
    lower.suptitle("the test digits that use each canonical channel most (first seed)", fontsize=10)
    for k in range(RANK):
        for place, example in enumerate(models[0]["canonical"]["top"][k]):
            axes = grid[place][k]
            axes.imshow(data.test_x[example].reshape(8, 8), cmap="gray_r")
            axes.set_xticks([])
            axes.set_yticks([])
        grid[0][k].set_title(f"channel {k}", fontsize=9)
    return figure


def _responses_and_losses(figure: Any, models: list[dict[str, Any]]) -> None:
    left, middle, right = figure.subplots(1, 3)
    shown_map = left.imshow(models[0]["canonical"]["responses"], cmap="RdBu_r", vmin=-2, vmax=2)
    left.set(xlabel="digit", ylabel="canonical channel", xticks=range(10), yticks=range(RANK))
    left.set_title("mean response (first seed)", fontsize=10)
    figure.colorbar(shown_map, ax=left, shrink=0.7)
    for gauge, offset in zip(GAUGES, (-0.2, 0.2), strict=True):
        stats = [mean_and_spread([100 * m[gauge]["lost"][k] for m in models]) for k in range(RANK)]
        means, spreads = zip(*stats, strict=True)
        places = np.arange(RANK) + offset
        middle.bar(places, means, 0.4, yerr=spreads, capsize=2, label=gauge)
    middle.set(xlabel="channel left out", ylabel="points of accuracy lost", xticks=range(RANK))
    middle.legend(fontsize=8)
    for model in models:
        right.plot(range(RANK), [100 * s for s in model["shares"]], "o-", ms=3, lw=1, alpha=0.7)
    right.set(xlabel="canonical channel", ylabel="share of the squared norm, %", yscale="log")
    right.set_title("spectra, all seeds", fontsize=10)


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, epochs = (2, 2) if asked.quick else (SEEDS, EPOCHS)
    cells, data = Cells(asked.out / f"{NAME}.json"), digits()
    models = []
    for seed in tqdm(range(seeds)):
        of = {"seed": seed, "epochs": epochs}
        models.append(cells.get(of, lambda: seed_run(seed, data, epochs)))  # noqa: B023
    save_figure(figure_of(models, data), asked.out, NAME)
    accuracies = shown([model["accuracy"] for model in models])
    ranks = shown([model["effective rank"] for model in models], 1)
    tables = [
        f"Test accuracy {accuracies} %, effective rank of the bond {ranks} of {RANK}.",
        channel_table(models),
        stability_table(models),
    ]
    write_page(asked.out, NAME, "What the channels of a bond stand for", INTRO, tables)


if __name__ == "__main__":
    main()
