"""Experiment 3: bonds of a pretrained transformer: how large they have to be, in its attention and
in its feed-forward layers, before and after healing; and growing them while it heals."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from cells import Cells, mean_and_spread, shown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import arguments, markdown_table, save_figure, write_page
from texts import batches, pairs, sentences
from torch import Tensor, nn
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.formats.factors import factorize

sys.path.insert(0, str(Path(__file__).parents[1]))
import minilm

NAME = "minilm_bonds"
# part → names of its weights, with their inputs and outputs
PARTS: dict[str, dict[str, tuple[int, int]]] = {
    "attention": {"encoder.layer.?.attention.*": (384, 384)},
    "feed-forward": {
        "encoder.layer.?.intermediate.dense": (384, 1536),
        "encoder.layer.?.output.dense": (1536, 384),
    },
}
MODES = {"LowRank": 1, "TT": 3, "TTMatrix": 2, "Tucker": 2}  # factors of inputs, and of outputs
BONDS: dict[str, dict[str, tuple[int, ...]]] = {  # the largest bond; others as far as they carry
    "attention": {
        "LowRank": (24, 48, 96, 144),
        "TT": (24, 48, 96, 144),
        "TTMatrix": (24, 48, 88, 132),
        "Tucker": (11, 14, 17, 20),
    },
    "feed-forward": {
        "LowRank": (40, 80, 160, 240),
        "TT": (56, 96, 160, 224),
        "TTMatrix": (48, 96, 176, 264),
        "Tucker": (17, 21, 27, 33),
    },
}
HEALED = ("LowRank", "TT", "Tucker")  # at the second and third of their bonds
LOSSES = {"none": "not healed", "feature": "by slices", "output": "as a whole"}
Ask = tuple[str, str, int, str]  # part, format, bond, healing
GROWTH = {"attention": ("TT", 48, 96), "feed-forward": ("TT", 96, 160)}
STAGES = ("small", "small, longer", "just grown", "grown", "large")
SEEDS, STEPS, GROWING, RATE = 2, 40, 20, 1e-3
TRAINED, BATCH, PAIRS = 2048, 8, 160
INTRO = f"""
all-MiniLM-L6-v2, pretrained (examples/minilm.py says where it comes from): the 24 weights of its
attention (3.5 M parameters) *or* the 12 of its feed-forward layers (7.1 M) become networks whose
bonds have a given size; the rest stays dense. Inputs and outputs are three modes each for TT (384 =
6·8·8), two for TTMatrix and Tucker (16·24). *Kept*: of the parameters of that part. *Cosine*: mean,
between sentence embeddings and those of the original. *Retrieval*: of {PAIRS} docstrings of
networkx, how many first sentences are nearest to the second sentence of their own docstring; the
original finds ORIGINAL %. Healing is {STEPS} steps of {BATCH} sentences of SciPy's docstrings, Adam
at {RATE:g} with a cosine schedule: seconds, not a training. What is not healed is the same for
every seed; what is healed is the mean of {SEEDS} seeds of the data's order, with their standard
deviation. A dash stands for what was not healed.
"""
GROWN = f"""
*Inflation*: a train of a small bond heals as a whole for {GROWING} steps; `tnc.inflate` then
grows all its bonds, and the same Adam goes on for {GROWING} steps more. Beside it the small one
after as many steps more, and a train that had the large bond from the start, after
{2 * GROWING} steps (constant rate; {SEEDS} seeds).
"""


@dataclass(frozen=True, slots=True)
class Material:
    """The pretrained model, batches to heal with, and pairs of sentences that belong together, as
    batches in one order; ``wanted``: the original's embeddings of all first and second ones."""

    original: nn.Module
    train: list[Tensor]
    firsts: list[Tensor]
    seconds: list[Tensor]
    wanted: Tensor


def material() -> Material:
    """Everything read once. Raises SystemExit where the model's package is missing."""
    folder = minilm.model_folder()
    original, pieces = minilm.load_model(folder), minilm.WordPieces(folder)
    train = batches(pieces, sentences("scipy", "*.py", TRAINED), BATCH)
    together = sorted(pairs("networkx", PAIRS), key=lambda pair: len("".join(pair)))
    firsts, seconds = (
        [pieces(side[k : k + 32]) for k in range(0, len(side), 32)]
        for side in zip(*together, strict=True)
    )
    return Material(original, train, firsts, seconds, embedded(original, [*firsts, *seconds]))


@torch.no_grad()
def embedded(model: nn.Module, given: Sequence[Tensor]) -> Tensor:
    """One embedding a sentence, of length one."""
    return torch.cat([model.eval()(tokens) for tokens in given])


def quality(model: nn.Module, known: Material) -> dict[str, float]:
    """How near embeddings are to the original's, and how well sentences find their partners."""
    found = embedded(model, [*known.firsts, *known.seconds])
    first, second = found.chunk(2)
    own = (first @ second.T).argmax(1) == torch.arange(len(first))
    cosine = (found * known.wanted).sum(1).mean()
    return {"cosine": float(cosine), "retrieval": float(own.double().mean())}


# What is done -----------------------------------------------------------------------------------


def compressor(known: Material) -> Callable[[str, str, int], tuple[nn.Module, float]]:
    """A function from part, format and bond to the model and the share of the part that is kept."""

    @lru_cache(maxsize=1)  # healings of one model follow one another
    def made(part: str, name: str, bond: int) -> tuple[nn.Module, float]:
        form = getattr(tnc.formats, name)(rank=bond, clamp=True)
        modes = [[factorize(size, MODES[name]) for size in sizes] for sizes in PARTS[part].values()]
        rules = {
            pattern: tnc.Rule(form, in_shape=ins, out_shape=outs)
            for pattern, (ins, outs) in zip(PARTS[part], modes, strict=True)
        }
        model, report = tnc.tensorize(known.original, rules, progress=False)
        before = sum(layer.parameters_before for layer in report.layers)
        return model, sum(layer.parameters_after for layer in report.layers) / before

    def copied(part: str, name: str, bond: int) -> tuple[nn.Module, float]:
        model, kept = made(part, name, bond)
        return copy.deepcopy(model), kept

    return copied


def heal(model: nn.Module, known: Material, loss: str, steps: int, seed: int, **how: Any) -> None:
    """Some steps on sentences that another seed sees at another time."""
    start = seed * STEPS % len(known.train)
    order = known.train[start:] + known.train[:start]
    options: dict[str, Any] = dict(lr=RATE, seed=seed, validation=None, progress=False)
    tnc.heal(model, known.original, order, loss, steps=steps, **options, **how)


def run(
    compressed: Any, ask: tuple[str, str, int], loss: str, seed: int, steps: int, known: Material
) -> dict[str, Any]:
    """One model: tensorized, healed if it is to be, and judged."""
    model, kept = compressed(*ask)
    if loss != "none":
        schedule = lambda part: 0.5 * (1 + math.cos(math.pi * part))  # noqa: E731
        heal(model, known, loss, steps, seed, schedule=schedule)
    return {"kept": kept, **quality(model, known)}


def grow(compressed: Any, part: str, seed: int, steps: int, known: Material) -> dict[str, Any]:
    """A small train that heals, grows and heals on, beside one that stays and one that is large."""
    name, small, large = GROWTH[part]
    model, kept = compressed(part, name, small)
    adam = Kept()
    heal(model, known, "output", steps, seed, optimizer=adam)
    found: dict[str, Any] = {"small": quality(model, known)}
    before = embedded(model, known.firsts)
    stays = copy.deepcopy(model)
    heal(stays, known, "output", steps, seed + 1, optimizer=adam.copied(model, stays))
    found["small, longer"] = quality(stays, known)
    tnc.inflate(model, "*", large, optimizer=adam.optimizer, clamp=True, seed=seed)
    drift = float((embedded(model, known.firsts) - before).abs().max() / before.abs().max())
    found["just grown"] = quality(model, known)
    heal(model, known, "output", steps, seed + 1, optimizer=adam)
    found["grown"] = quality(model, known)
    model, all_kept = compressed(part, name, large)
    adam = Kept()
    heal(model, known, "output", steps, seed, optimizer=adam)
    heal(model, known, "output", steps, seed + 1, optimizer=adam)
    found["large"] = quality(model, known)
    return {"kept": [kept, all_kept], "drift": drift, **found}


class Kept:
    """An Adam that is made at the first healing and goes on in the next one."""

    def __init__(self) -> None:
        self.optimizer: Any = None

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(parameters, lr=RATE)
        return self.optimizer  # type: ignore[no-any-return]

    def copied(self, model: nn.Module, other: nn.Module) -> Kept:
        """The same moments for the parameters of a copy of the model."""
        there = dict(zip(model.parameters(), other.parameters(), strict=True))
        made = Kept()
        made([there[p] for group in self.optimizer.param_groups for p in group["params"]])
        made.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return made


# What is shown ----------------------------------------------------------------------------------

Results = dict[Ask, list[dict[str, Any]]]
Grown = dict[str, list[dict[str, Any]]]


def table_of(results: Results) -> str:
    rows = []
    for part, name, bond in dict.fromkeys(key[:3] for key in results):
        cells = [results.get((part, name, bond, loss)) for loss in LOSSES]
        kept = cells[0][0]["kept"] if cells[0] else math.nan
        row = [f"{part}, {name}, {bond}", f"{kept:.0%}"]
        row += [_cell(found, "cosine", 1, 3) for found in cells]
        row += [_cell(found, "retrieval", 100, 1) for found in cells]
        rows.append(row)
    headings = ["part, format, bond", "kept"]
    headings += [f"cosine, {label}" for label in LOSSES.values()]
    headings += [f"retrieval, {label}, %" for label in LOSSES.values()]
    return markdown_table(headings, rows)


def _cell(found: list[dict[str, Any]] | None, what: str, scale: float, digits: int) -> str:
    if not found:
        return "–"
    values = [each[what] for each in found]
    return shown(values, scale, digits) if len(values) > 1 else f"{scale * values[0]:.{digits}f}"


def growth_table(grown: Grown) -> str:
    rows = []
    for part, found in grown.items():
        name, small, large = GROWTH[part]
        for what, scale, digits in (("cosine", 1, 3), ("retrieval, %", 100, 1)):
            key = what.partition(",")[0]
            cells = [_cell([each[s] for each in found], key, scale, digits) for s in STAGES]
            rows.append([f"{part}, {name} {small} → {large}, {what}", *cells])
    kept = [
        f"{before:.0%} → {after:.0%}" for before, after in (f[0]["kept"] for f in grown.values())
    ]
    drift = max(each["drift"] for found in grown.values() for each in found)
    note = f"Kept: {' and '.join(kept)}. Growing moved embeddings by at most {drift:.1e}"
    table = markdown_table(["part, bonds", *STAGES], rows)
    return f"{GROWN.strip()}\n\n{table}\n\n{note} of the largest number."


def figure_of(results: Results, original: dict[str, float]) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, len(PARTS), sharey="row", sharex=True)
    for row, (what, scale) in zip(panels, (("cosine", 1), ("retrieval", 100)), strict=True):
        for axes, part in zip(row, PARTS, strict=True):
            _curves(axes, results, part, what, scale)
            axes.axhline(scale * original[what], color="0.5", lw=1)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("mean cosine to the original" if what == "cosine" else "retrieval, %")
    for axes, part in zip(panels[0], PARTS, strict=True):
        axes.set_title(part)
    for axes in panels[1]:
        axes.set_xlabel("parameters of the part that are kept")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _curves(axes: Axes, results: Results, part: str, what: str, scale: float) -> None:
    """Of each format a line without healing, and the points that were healed."""
    styles = {"none": "o-", "feature": "s--", "output": "^:"}
    for number, name in enumerate(BONDS[part]):
        for loss, style in styles.items():
            keys = [k for k in results if k[:2] == (part, name) and k[3] == loss]
            found = [
                (results[k][0]["kept"], *mean_and_spread([scale * r[what] for r in results[k]]))
                for k in keys
            ]
            if found:
                label = name if loss == "none" else f"{name}, {LOSSES[loss]}"
                kept, means, spreads = zip(*found, strict=True)
                axes.errorbar(
                    kept, means, spreads, fmt=style, color=f"C{number}", ms=4, lw=1, label=label
                )


# All of it --------------------------------------------------------------------------------------


def asks_of(quick: bool) -> list[Ask]:
    """Which model gets which healing, so that healings of one model follow one another."""
    asks = []
    for part, forms in BONDS.items():
        for name, bonds in forms.items():
            for place, bond in enumerate(bonds):
                healed = name in HEALED and place in (1, 2)
                losses = [*LOSSES] if healed else ["none"]
                asks += [(part, name, bond, loss) for loss in losses]
    return [ask for ask in asks if ask[:2] == ("attention", "TT")] if quick else asks


def rounds_of(asks: list[Ask], seeds: int) -> list[tuple[Ask, int]]:
    """What needs no healing first, then one seed after the other."""
    rounds = [(ask, 0) for ask in asks if ask[3] == "none"]
    healed = [ask for ask in asks if ask[3] != "none"]
    return rounds + [(ask, seed) for seed in range(seeds) for ask in healed]


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds, steps, growing = (1, 2, 1) if asked.quick else (SEEDS, STEPS, GROWING)
    cells, known = Cells(asked.out / f"{NAME}.json"), material()
    compressed = compressor(known)
    asks = asks_of(asked.quick)
    results: Results = {ask: [] for ask in asks}
    grown: Grown = {part: [] for part in GROWTH if not asked.quick or part == "attention"}
    original = cells.get({"original": True}, lambda: quality(known.original, known))
    for seed in range(seeds):
        for part in grown:
            of = {"growth": part, "seed": seed, "steps": growing}
            make = lambda: grow(compressed, part, seed, growing, known)  # noqa: B023, E731
            grown[part].append(cells.get(of, make))
    for ask, seed in tqdm(rounds_of(asks, seeds), unit="model"):
        part, name, bond, loss = ask
        of = {"part": part, "format": name, "bond": bond, "healing": loss, "seed": seed}
        make = lambda: run(compressed, ask[:3], loss, seed, steps, known)  # noqa: B023, E731
        results[ask].append(cells.get({**of, "steps": steps}, make))
    save_figure(figure_of(results, original), asked.out, NAME)
    intro = INTRO.replace("ORIGINAL", f"{100 * original['retrieval']:.1f}")
    tables = [table_of(results), growth_table(grown)]
    write_page(asked.out, NAME, "Bonds of a pretrained transformer", intro, tables)


if __name__ == "__main__":
    main()
