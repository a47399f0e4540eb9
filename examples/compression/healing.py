"""What search and healing give on a real transformer, beside uniform low rank and uniform TT.

    python examples/compression/healing.py --out demo-output

The 36 linear layers of all-MiniLM-L6-v2 (10.6 M of its 22.7 M parameters; examples/minilm.py says
where it comes from) become networks at the same numbers of parameters: chosen by `tnc.Search`, or
one format and one fraction for all. Each is then healed by slices and as a whole. Printed and
written: the cosine between sentence embeddings and the original's, on sentences that nothing was
trained on. Sentences come with packages: docstrings of SciPy are trained on, those of networkx and
the 40 of examples/sentences.txt are the test. Every step is kept in files; a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

import tncompiler as tnc

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import minilm  # noqa: E402
from texts import batches, sentences  # noqa: E402

BUDGETS = (0.25, 0.4, 0.55, 0.7, 0.85)  # of the parameters of the linear layers
HEALED = (0.4,)  # budgets at which models are healed
FORMATS = (tnc.formats.LowRank(), tnc.formats.TT(), tnc.formats.Tucker(), tnc.formats.Monarch())
LEVELS = (0.2, 0.35, 0.5, 0.7, 0.85)
# name → configuration for a budget, and whether outputs are fitted instead of weights
WAYS: dict[str, bool] = {
    "LowRank": False,
    "TT": False,
    "search": False,
    "LowRank, weighted": True,
    "search, weighted": True,
}
TRAINED, TESTED, CALIBRATION = 2048, 216, 4
BATCH = 8  # sentences
STEPS, RATE = 200, 1e-3


# Ways -------------------------------------------------------------------------------------------


class Experiment:
    """The original model, the sentences, and the folder where everything is kept."""

    def __init__(self, out: Path, seeds: Sequence[int]) -> None:
        self.out, self.seeds = out, seeds
        out.mkdir(parents=True, exist_ok=True)
        folder = minilm.model_folder()
        self.original, pieces = minilm.load_model(folder), minilm.WordPieces(folder)
        self.train = batches(pieces, sentences("scipy", "*.py", TRAINED), BATCH)
        own = (HERE.parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
        self.test = batches(pieces, [*own, *sentences("networkx", "*.py", TESTED)], BATCH)
        self.records = out / "healing.jsonl"

    def linear_parameters(self) -> int:
        return sum(m.weight.numel() for m in self.original.modules() if isinstance(m, nn.Linear))

    def compressed(self, way: str, budget: float) -> nn.Module:
        """The model tensorized one way; read from its file where that is there."""
        path = self.out / f"{way.replace(', ', '-')}-{budget}.tnc"
        model = copy.deepcopy(self.original)
        if path.exists():
            return tnc.load(model, path)
        started = time.perf_counter()
        report = self._tensorize(model, way, budget)
        kept = sum(layer.parameters_after for layer in report.layers)
        stay = [s for s in report.skipped if s.kind == "Linear"]
        dense = sum(self.original.get_submodule(s.name).weight.numel() for s in stay)
        self.note(
            way=way,
            budget=budget,
            healing="none",
            seed=0,
            kept=(kept + dense) / self.linear_parameters(),
            seconds=time.perf_counter() - started,
            formats=_formats(report),
            predicted=None if report.search is None else report.search.predicted_error,
            **self.cosines(model),
        )
        if report.search is not None:
            (self.out / "search.json").write_text(report.search.to_json(), encoding="utf-8")
            report.search.plot(self.out / f"search-{'weighted' if WAYS[way] else 'plain'}.png")
        tnc.save(model, path)
        return model

    def _tensorize(self, model: nn.Module, way: str, budget: float) -> Any:
        weighted = WAYS[way]
        # many tokens where second moments are taken of them
        known = self.train[: 16 if weighted else CALIBRATION]
        options: dict[str, Any] = dict(
            filter_fn=lambda module, name: isinstance(module, nn.Linear), weighted=weighted
        )
        if way.startswith("LowRank") or way == "TT":
            form = getattr(tnc.formats, way.partition(",")[0])()
            calibration = known if weighted else None
            rule = tnc.Rule(form, budget=budget)
            return tnc.tensorize_(model, rule, calibration=calibration, **options)
        total = sum(p.numel() for p in model.parameters())
        search = tnc.Search(
            total - int((1 - budget) * self.linear_parameters()),
            formats=FORMATS[:1] if weighted else FORMATS,
            modes=(2,),
            levels=LEVELS,
            store=self.out / f"search-{'weighted' if weighted else 'plain'}.jsonl",
        )
        return tnc.tensorize_(model, search, calibration=known, **options)

    def heal(self, way: str, budget: float, loss: str, seed: int) -> None:
        """Heal a compressed model, from slices or as a whole, and note what that gave."""
        model = self.compressed(way, budget)
        found = tnc.heal(
            model,
            self.original,
            self.train[seed * STEPS % len(self.train) :] + self.train,
            loss=loss,
            steps=STEPS,
            lr=RATE,
            schedule=lambda part: 0.5 * (1 + math.cos(math.pi * part)),
            validation=None,  # what the last step leaves is shown, gain or loss
            checkpoint=self.out / f"{way.replace(', ', '-')}-{budget}-{loss}-{seed}.heal",
            every=50,
            seed=seed,
        )
        self.note(
            way=way,
            budget=budget,
            healing=loss,
            seed=seed,
            seconds=found.seconds,
            loss=(found.losses[0], found.losses[-1]),
            **self.cosines(model),
        )

    def cosines(self, model: nn.Module) -> dict[str, float]:
        """How near embeddings of the test's sentences are to the original's."""
        with torch.no_grad():
            pairs = [(self.original(tokens), model.eval()(tokens)) for tokens in self.test]
        found = torch.cat([(a * b).sum(1) for a, b in pairs])
        return {"cosine": float(found.mean()), "least": float(found.min())}

    # ---------------------------------------------------------------- records

    def note(self, **record: Any) -> None:
        with self.records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def noted(self) -> list[dict[str, Any]]:
        if not self.records.exists():
            return []
        return [json.loads(line) for line in self.records.read_text(encoding="utf-8").splitlines()]

    def run(
        self, ways: Sequence[str], budgets: Sequence[float], healed: Sequence[float]
    ) -> list[dict[str, Any]]:
        """All that is not noted yet."""
        for way in ways:
            for budget in budgets:
                self.compressed(way, budget)
        cells = [
            (way, budget, loss, seed)
            for seed in self.seeds
            for budget in healed
            for way in ways
            for loss in ("feature", "output")
        ]
        done = {(r["way"], r["budget"], r["healing"], r["seed"]) for r in self.noted()}
        for cell in tqdm([cell for cell in cells if cell not in done], unit="healing"):
            self.heal(*cell)
        return self.noted()


def _formats(report: Any) -> dict[str, dict[str, int]]:
    """How many weights of each kind got which format."""
    counts: dict[str, dict[str, int]] = {}
    rows = [(layer.name, layer.format.partition("(")[0]) for layer in report.layers]
    rows += [(s.name, "dense") for s in report.skipped if s.kind == "Linear"]
    for name, form in rows:
        kind = ".".join(name.split(".")[3:])
        counts.setdefault(kind, {}).setdefault(form, 0)
        counts[kind][form] += 1
    return counts


# Showing ----------------------------------------------------------------------------------------


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Cosine against parameters kept: a panel for each way of healing."""
    healings = [h for h in ("none", "feature", "output") if any(r["healing"] == h for r in records)]
    figure, panels = plt.subplots(
        1,
        len(healings),
        figsize=(4 * len(healings), 4),
        sharex=True,
        sharey=True,
        squeeze=False,
        constrained_layout=True,
    )
    titles = {"none": "not healed", "feature": "by slices", "output": "as a whole"}
    for axes, healing in zip(panels[0], healings, strict=True):
        for number, way in enumerate(dict.fromkeys(r["way"] for r in records)):
            own = [r for r in records if (r["way"], r["healing"]) == (way, healing)]
            budgets = sorted({r["budget"] for r in own})
            means = [_mean([r["cosine"] for r in own if r["budget"] == b]) for b in budgets]
            axes.plot(budgets, means, marker="osD^v"[number % 5], ms=5, lw=1.2, label=way)
        axes.set(title=titles[healing], xlabel="parameters kept of linear layers")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel="mean cosine to the original")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def show(records: Sequence[dict[str, Any]]) -> None:
    table = Table("way", "budget", "healed", "seed", "cosine", "least", "seconds")
    for r in records:
        numbers = (f"{r['cosine']:.3f}", f"{r['least']:.3f}", f"{r['seconds']:.0f}")
        table.add_row(r["way"], f"{r['budget']:.0%}", r["healing"], str(r["seed"]), *numbers)
    Console(width=110).print(table)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--budgets", nargs="*", type=float, default=list(BUDGETS))
    parser.add_argument("--healed", nargs="*", type=float, default=list(HEALED))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    options = parser.parse_args(argv)
    experiment = Experiment(options.out, options.seeds)
    records = experiment.run(options.ways, options.budgets, options.healed)
    draw(records, options.out / "healing.png")
    show(records)
    return records


if __name__ == "__main__":
    main()
