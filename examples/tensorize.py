"""A whole pretrained transformer as networks, without training: what is left of its embeddings.

    python examples/tensorize.py --out docs/pictures

all-MiniLM-L6-v2 (examples/minilm.py) is tensorized by several formats to several budgets. Printed
and written: parameters kept, the cosine between the embeddings of 40 sentences and the original's,
the rank correlation of all their similarities, mean weight errors of each kind of layer, seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import minilm
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

import tncompiler as tnc
from tncompiler.models.report import LayerReport

SENTENCES = Path(__file__).with_name("sentences.txt")
# English of another kind, for calibration: as many tokens as a layer has inputs, and more
TEXT = Path(__file__).parent.parent / "docs" / "decisions.md"
LINES, BATCH = 160, 32
BUDGETS = (0.2, 0.4, 0.7)
WORDS = "*.word_embeddings"
# what is tried → format, patterns of what stays dense, and options of tensorize_
WAYS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "LowRank": ("LowRank", (), {}),
    "LowRank, weighted": ("LowRank", (), {"weighted": True}),
    "LowRank, weighted, words stay": ("LowRank", (WORDS,), {"weighted": True}),
    "TT": ("TT", (), {}),
    "TTMatrix": ("TTMatrix", (), {}),
    "Monarch": ("Monarch", (), {}),
}
# the end of a module's name → what kind of layer it is
KINDS: dict[str, str] = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "self.query": "query, key",
    "self.key": "query, key",
    "self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}


@dataclass(frozen=True)
class Run:
    """One way and budget.

    ``kept``: of all parameters. ``cosine``: mean over sentences, and the least. ``ranks``:
    Spearman's correlation of all pairs' similarities. ``errors``: of weights, mean over layers of a
    kind. ``skipped``: weights that stayed dense.
    """

    way: str
    budget: float
    kept: float
    cosine: float
    least_cosine: float
    ranks: float
    seconds: float
    errors: dict[str, float]
    skipped: list[str]


def run(way: str, budget: float, folder: Path, tokens: Tensor, known: list[Tensor]) -> Run:
    """Tensorize the model and embed the sentences of `tokens`; `known` are for calibration."""
    model = minilm.load_model(folder)
    with torch.no_grad():
        before = model(tokens)
    format, stay, options = WAYS[way]
    config = {**dict.fromkeys((*stay, "*.token_type_embeddings")), "*": _format(format)}
    calibration = known if options else None
    report = tnc.tensorize_(model, config, budget=budget, calibration=calibration, **options)
    with torch.no_grad():
        after = model(tokens)
    cosines = (before * after).sum(1)
    return Run(
        way,
        budget,
        report.parameters_after / report.parameters_before,
        float(cosines.mean()),
        float(cosines.min()),
        rank_correlation(before, after),
        report.seconds,
        mean_errors(report.layers),
        [skipped.name for skipped in report.skipped if skipped.reason != "not chosen"],
    )


def calibration_batches(pieces: minilm.WordPieces) -> list[Tensor]:
    """Lines of a text, those of one length together, so that little is padded."""
    lines = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if len(line) > 60]
    ordered = sorted(lines[:LINES], key=len)
    return [pieces(ordered[k : k + BATCH]) for k in range(0, len(ordered), BATCH)]


def _format(name: str) -> Any:
    return getattr(tnc.formats, name)()


def rank_correlation(before: Tensor, after: Tensor) -> float:
    """Spearman's correlation of the similarities of all pairs."""
    upper = torch.triu_indices(len(before), len(before), 1)
    pairs = [(e @ e.T)[upper[0], upper[1]].numpy() for e in (before, after)]
    return float(spearmanr(*pairs).statistic)


def mean_errors(layers: Sequence[LayerReport]) -> dict[str, float]:
    """The mean relative error over the layers of each kind."""
    found: dict[str, list[float]] = {}
    for layer in layers:
        kind = next(kind for end, kind in KINDS.items() if layer.name.endswith(end))
        found.setdefault(kind, []).append(layer.error)
    return {kind: sum(errors) / len(errors) for kind, errors in found.items()}


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Cosine against parameters kept, a line for each way."""
    figure, axes = plt.subplots(figsize=(6, 4.2), constrained_layout=True)
    for number, way in enumerate(dict.fromkeys(run["way"] for run in runs)):
        own = sorted((run["kept"], run["cosine"]) for run in runs if run["way"] == way)
        axes.plot(*zip(*own, strict=True), marker="osD^vP*X"[number], ms=5, lw=1.2, label=way)
    axes.set(xlabel="parameters kept", ylabel="mean cosine to the original", ylim=(None, 1.0))
    axes.set_title("all-MiniLM-L6-v2, tensorized without training")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(runs: Sequence[Mapping[str, Any]]) -> None:
    headings = ("way", "budget", "kept", "cosine", "least", "rank correlation", "seconds")
    table = Table(*headings)
    for run in runs:
        numbers = (run["cosine"], run["least_cosine"], run["ranks"])
        shown = (f"{number:.3f}" for number in numbers)
        row = (run["way"], f"{run['budget']:.0%}", f"{run['kept']:.1%}", *shown)
        table.add_row(*row, f"{run['seconds']:.1f}")
    Console(width=110).print(table)


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--budgets", nargs="*", type=float, default=list(BUDGETS))
    options = parser.parse_args(argv)
    folder = minilm.model_folder()
    pieces, lines = minilm.WordPieces(folder), SENTENCES.read_text(encoding="utf-8").splitlines()
    known, tokens = calibration_batches(pieces), pieces(lines)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tensorize.json"
    runs: list[Run] = []
    for way in options.ways:
        for budget in options.budgets:
            runs.append(run(way, budget, folder, tokens, known))
            data = [asdict(each) for each in runs]  # written as far as it got
            path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw(data, options.out / "tensorize.png")
    show(data)
    return runs


if __name__ == "__main__":
    main()
