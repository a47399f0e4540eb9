"""A page of docs/experiments: what was done, a table, a plot, and what was learned."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[2] / "docs" / "experiments"


def arguments(description: str) -> argparse.Namespace:
    """What every experiment takes on its command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs: does it run?")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of results and pages")
    return parser.parse_args()


def learned(name: str) -> str:
    """What was learned of an experiment: written by hand, from its results."""
    path = Path(__file__).parent / "learned" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip()


def write_page(out: Path, name: str, title: str, intro: str, tables: Sequence[str]) -> None:
    """docs/experiments/NAME.md beside NAME.json and NAME.png."""
    command = f"python examples/compression/{name}.py"
    body = [
        f"# {title}",
        f"{intro.strip()}\n\nReproduced by `{command}`; results of single runs are in "
        f"[{name}.json]({name}.json). A run that is killed goes on where it was.",
        *tables,
        f"![{title}]({name}.png)",
        f"## What was learned\n\n{learned(name)}",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text("\n\n".join(body) + "\n", encoding="utf-8")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def plain_ticks(axes: Axes, places: Sequence[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers, and no others."""
    axes.set_xticks([*places], [f"{place:,.0f}" for place in places])
    axes.minorticks_off()


def save_figure(figure: Figure, out: Path, name: str) -> None:
    """The plot beside the page; the same data give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
