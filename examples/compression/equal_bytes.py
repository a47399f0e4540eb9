"""Experiment 4: tensor networks against magnitude pruning, quantization and low rank at equal
bytes, alone and combined."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from cells import Cells, mean_and_spread, shown
from matplotlib.figure import Figure
from page import arguments, markdown_table, plain_ticks, save_figure, write_page
from scratch import LAYERS, WIDTH, dense_model
from torch import nn
from tqdm import tqdm
from training import Data, accuracy, digits, fit

import tncompiler as tnc
from tncompiler.compression.changed import layer_bytes
from tncompiler.nn.tensorized import Tensorized

NAME = "equal_bytes"
SHARES = (0.25, 0.125, 0.0625, 0.03125)  # of the hidden layers' bytes in float32
SEEDS, EPOCHS, TUNING = 3, 30, 10
WAYS: dict[str, tuple[str, str]] = {  # name → format or "pruned", and how numbers are held
    "TT-matrix": ("TTMatrix", "float32"),
    "tensor train": ("TT", "float32"),
    "Tucker": ("Tucker", "float32"),
    "low rank": ("LowRank", "float32"),
    "magnitude pruning": ("pruned", "float32"),
    "quantized": ("Dense", "widest"),
    "TT-matrix, int8": ("TTMatrix", "int8"),
    "tensor train, int8": ("TT", "int8"),
    "low rank, int8": ("LowRank", "int8"),
    "magnitude pruning, int8": ("pruned", "int8"),
    "quantized by torchao": ("torchao", "int8"),
}
BITS = {"float32": 32, "int8": 8, "int4": 4}
INTRO = f"""
A trained classifier 64 → {WIDTH} → {WIDTH} → 10 of the digits; both hidden layers are brought to a
share of the bytes that their weights take in float32. Networks and low rank get a budget of
numbers; pruning keeps as many numbers as fit with one bit a weight that says which they are;
*quantized* holds all weights in int8 (25 %) or int4 (12.5 %); torchao 0.18 does so beside it in
int8, weights only (its int4 takes a byte a weight on CPUs). Combined with int8, four times as many
numbers fit. Scales are counted where networks are quantized; those of *quantized* come on top
(2 to 5 %). Test accuracy after compression, and after {TUNING} epochs of training on (of scales,
where numbers are codes), mean ± standard deviation of {SEEDS} seeds. The dense network has DENSE %.
"""


def compressed(model: nn.Sequential, way: str, share: float) -> nn.Sequential | None:
    """The model with its hidden layers in that share of their bytes; None where there is no such
    way."""
    format, held = WAYS[way]
    if format == "Dense":
        return _quantized_dense(model, share)
    if format == "torchao":
        return _quantized_by_torchao(model) if share == 0.25 else None
    numbers = share * 32 / BITS[held]
    if format == "pruned":
        made = _tensorized(model, "Dense", None)
        kept = numbers - 1 / BITS[held]  # a bit for each weight says where numbers are
        if not 0 < kept <= 1:
            return None
        tnc.prune(made, 1 - kept, "magnitude")
    else:
        made = _tensorized(model, format, min(numbers, 1.0) * (0.97 if held != "float32" else 1.0))
    if held != "float32":
        tnc.quantize(made, held, scales="bond" if format != "pruned" else "best")
    return made


def _quantized_dense(model: nn.Sequential, share: float) -> nn.Sequential | None:
    scheme = {0.25: "int8", 0.125: "int4"}.get(share)
    if scheme is None:
        return None
    made = _tensorized(model, "Dense", None)
    tnc.quantize(made, scheme)
    return made


def _quantized_by_torchao(model: nn.Sequential) -> nn.Sequential:
    """The hidden layers stay torch's own, with weights in int8 and a scale for each output."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = copy.deepcopy(model)
    quantize_(made, Int8WeightOnlyConfig(), lambda module, name: name in LAYERS)
    return made


def _tensorized(model: nn.Sequential, name: str, budget: float | None) -> nn.Sequential:
    rule = tnc.Rule(getattr(tnc.formats, name)(), budget=budget)
    made, _ = tnc.tensorize(model, {layer: rule for layer in LAYERS}, progress=False)
    return made


def stored_bytes(model: nn.Sequential, way: str) -> int:
    """What the weights of the hidden layers take: masks as one bit a weight."""
    total = 0
    for layer in LAYERS:
        module = model[int(layer)]
        if WAYS[way][0] == "torchao":
            weight = module.weight
            held = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
            total += sum(tensor.numel() * tensor.element_size() for tensor in held)
            continue
        if not isinstance(module, Tensorized):
            raise TypeError(f"{type(module).__name__} was not compressed")
        if WAYS[way][0] != "pruned":
            total += layer_bytes(module)
            continue
        weights, alive = module.weight.numel(), int((module.weight != 0).sum())
        total += (alive * BITS[WAYS[way][1]] + weights) // 8
    return total


def run(way: str, share: float, seed: int, tuning: int, data: Data, dense: Any) -> dict[str, Any]:
    model = compressed(dense(seed), way, share)
    if model is None:
        return {}
    found = {"bytes": stored_bytes(model, way), "before": accuracy(model, data)}
    fit(model, data, epochs=tuning, seed=seed + 100, rate=1e-3)
    return {**found, "after": accuracy(model, data)}


def dense_models(data: Data, epochs: int) -> Callable[[int], nn.Sequential]:
    known: dict[int, nn.Sequential] = {}

    def of_seed(seed: int) -> nn.Sequential:
        if seed not in known:
            known[seed] = dense_model(seed)
            fit(known[seed], data, epochs=epochs, seed=seed)
        return copy.deepcopy(known[seed])

    return of_seed


Results = dict[tuple[str, float], list[dict[str, Any]]]


def table_of(results: Results, when: str) -> str:
    rows = []
    for way in WAYS:
        row = [way]
        for share in SHARES:
            cells = results[way, share]
            row.append(shown([c[when] for c in cells]) if all(cells) else "–")
        rows.append(row)
    heading = "as compressed" if when == "before" else f"after {TUNING} epochs more"
    return markdown_table([heading, *(f"{100 * share:g} % of bytes" for share in SHARES)], rows)


def figure_of(results: Results, dense: list[float]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, when in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        for number, way in enumerate(WAYS):
            found = [
                (cells[0]["bytes"], *mean_and_spread([100 * c[when] for c in cells]))
                for share in SHARES
                if all(cells := results[way, share])
            ]
            sizes, means, spreads = zip(*found, strict=True)
            style = "s--" if "int8" in way else "o-"
            colour = f"C{number % 6 if number < 6 else (0, 1, 3, 4, 7)[number - 6]}"
            axes.errorbar(
                sizes, means, spreads, fmt=style, color=colour, ms=4, lw=1, capsize=2, label=way
            )
        axes.axhline(100 * mean_and_spread(dense)[0], color="0.5", lw=1, label="dense, float32")
        axes.set(xscale="log", xlabel="bytes of the hidden layers", ylim=(0, 101))
        title = "as compressed" if when == "before" else f"after {TUNING} epochs more"
        axes.set_title(title, fontsize=10)
        plain_ticks(axes, (10_000, 20_000, 40_000, 80_000))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[1].legend(fontsize=7)
    return figure


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, epochs, tuning = (1, 2, 1) if asked.quick else (SEEDS, EPOCHS, TUNING)
    cells, data = Cells(asked.out / f"{NAME}.json"), digits()
    dense = dense_models(data, epochs)
    asks = [(way, share) for way in WAYS for share in SHARES]
    results: Results = {ask: [] for ask in asks}
    for ask, seed in tqdm([(ask, seed) for seed in range(seeds) for ask in asks]):
        way, share = ask
        of = {"way": way, "share": share, "seed": seed, "epochs": epochs, "tuning": tuning}
        make = lambda: run(way, share, seed, tuning, data, dense)  # noqa: B023, E731
        results[ask].append(cells.get(of, make))
    accuracies = []
    for seed in range(seeds):
        make = lambda: {"accuracy": accuracy(dense(seed), data)}  # noqa: B023, E731
        accuracies.append(cells.get({"dense": seed, "epochs": epochs}, make)["accuracy"])
    save_figure(figure_of(results, accuracies), asked.out, NAME)
    tables = [table_of(results, "before"), table_of(results, "after")]
    intro = INTRO.replace("DENSE", shown(accuracies))
    write_page(asked.out, NAME, "Ways to compress, at equal bytes", intro, tables)


if __name__ == "__main__":
    main()
