"""Write docs/formats.md: what each format is, its picture, its parameter count, how it is used.

    make docs

Everything on the page comes from the formats themselves: their docstrings, a drawing of a small
network, the count as a sympy expression. The figures on pretrained weights come from
examples/pretrained.py, whose table is read from docs/pictures/formats.json where it lies there.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import tncompiler as tnc
from tncompiler.formats import ALIASES, FORMATS

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"Monarch": ((4, 8), (8, 4))}
IN_SHAPE, OUT_SHAPE = (4, 8, 4), (8, 4, 8)

HEAD = """# Formats

A format says how a weight with input and output modes is a network of small cores. Each is a
description, usable on its own (`network`, `decompose`, `parameters`) and in layers
(`tnc.nn.Linear(…, format=…)`). This page is written by `make pages`; do not edit it by hand.

<!-- run: import numpy as np, torch -->
<!-- run: W = np.random.default_rng(0).standard_normal((128, 256)) -->
<!-- run: dense = torch.nn.Linear(128, 256) -->

```python
import tncompiler as tnc

format = tnc.formats.TTMatrix(rank=8)
weight = format.network((4, 8, 4), (8, 4, 8))  # an expression with indices i1 i2 i3 o1 o2 o3
found = format.decompose(W, (4, 8, 4), (8, 4, 8), tolerance=0.1)  # or rank=, or budget=
found.cores  # arrays by name
found.error, found.lower_bound  # what was reached, and what no network of these ranks can beat
layer = tnc.nn.Linear.from_dense(dense, format, in_shape=(4, 8, 4), out_shape=(8, 4, 8))
```

`tnc.formats.factorize(768, 3)` picks balanced modes, `(8, 8, 12)`; a number without any, a prime
say, is padded. Ranks above what a bond can carry are an error unless `clamp=True`.
"""


def example(name: str) -> Any:
    """A format with ranks for the example."""
    if name == "Custom":
        return tnc.formats.Custom(_custom)
    made = getattr(tnc.formats, name)
    return made() if name == "Dense" else made(rank=2)


def _custom(ins: Any, outs: Any) -> Any:
    """Two cores on a bond, the second with a hyperedge to an input mode."""
    r = tnc.Index("r", 3)
    return tnc.contract(
        tnc.param("A", *ins, r), tnc.param("B", r, ins[0], *outs), out=(*ins, *outs)
    )


def picture(name: str) -> str:
    """Draw the example's network; the file's name."""
    network = example(name).network(*SHAPES.get(name, (IN_SHAPE, OUT_SHAPE)))
    axes = tnc.compile(network, framework="numpy", seed=0).draw("network")
    file = f"format_{name.lower()}.png"
    axes.figure.savefig(PICTURES / file, dpi=110, bbox_inches="tight")
    plt.close(axes.figure)
    return file


def count(name: str) -> str:
    """The parameter count for sizes and ranks that are symbols, as text."""
    if name == "Custom":
        return "that of the network"
    modes = 2 if name == "Monarch" else 3
    ins = tuple(tnc.size(f"n{k}") for k in range(1, modes + 1))
    outs = tuple(tnc.size(f"m{k}") for k in range(1, modes + 1))
    made = getattr(tnc.formats, name)
    return str((made() if name == "Dense" else made(rank=tnc.size("r"))).parameters(ins, outs))


def section(name: str) -> str:
    """The part of the page on one format."""
    doc = inspect.cleandoc(getattr(tnc.formats, name).__doc__ or "")
    others = [alias for alias, target in ALIASES.items() if target == name]
    also = f" (also `{'`, `'.join(others)}`)" if others else ""
    return (
        f"## {name}{also}\n\n```text\n{doc}\n```\n\n"
        f"Parameters, three modes a side: `{count(name)}`\n\n"
        f"![the network of {name}](pictures/{picture(name)})\n"
    )


def pretrained() -> str:
    """The table and the plots of examples/pretrained.py, if they are there."""
    path = PICTURES / "formats.json"
    if not path.exists():
        return ""
    points = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## On pretrained weights\n",
        "Relative error of weights of all-MiniLM-L6-v2 (22.7 M parameters), nothing trained, and",
        "in brackets the fraction of parameters, as examples/pretrained.py wrote them:",
        "",
        "| weight | format | " + " | ".join(f"{b:.0%}" for b in (0.05, 0.1, 0.2, 0.4)) + " |",
        "|---|---|---|---|---|---|",
    ]
    for weight in dict.fromkeys(p["weight"] for p in points):
        for format in dict.fromkeys(p["format"] for p in points):
            own = [p for p in points if (p["weight"], p["format"]) == (weight, format)]
            cells = [_cell(own, budget) for budget in (0.05, 0.1, 0.2, 0.4)]
            lines.append(f"| {weight} | {format} | {' | '.join(cells)} |")
    pictures = sorted({p["weight"] for p in points})
    lines += ["", *(f"![{name}](pictures/formats_{name}.png)" for name in pictures), ""]
    return "\n".join(lines)


def _cell(own: list[dict[str, Any]], budget: float) -> str:
    within = [p for p in own if budget / 2 < p["fraction"] <= budget]
    if not within:
        return "–"
    best = max(within, key=lambda p: p["fraction"])
    return f"{best['error']:.3f} ({best['fraction']:.2f})"


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    sections = [section(name) for name in FORMATS]
    text = "\n".join([HEAD, *sections, pretrained()])
    (HERE / "formats.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"wrote docs/formats.md and {len(sections)} pictures")


if __name__ == "__main__":
    main()
