"""Write docs/pretrained.md from its template and docs/pretrained.json.

python examples/tensorize.py --out demo-output      (minutes; needs the package of the model)
cp demo-output/tensorize.json docs/pretrained.json; cp demo-output/tensorize.png \\
    docs/pictures/pretrained_tensorize.png
python docs/build_pretrained.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUDGET = 0.4  # at which kinds of layers are compared


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    rules = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rules, *rows))


def runs_table(runs: list[dict[str, Any]]) -> str:
    """A row for each way and budget."""
    rows = []
    for run in runs:
        numbers = [f"{run[key]:.3f}" for key in ("cosine", "least_cosine", "ranks")]
        shares = [f"{run['budget']:.0%}", f"{run['kept']:.1%}"]
        rows.append([run["way"], *shares, *numbers, f"{run['seconds']:.0f}"])
    return markdown_table(["way", "budget", "kept", "cosine", "least", "ranks", "seconds"], rows)


def kinds_table(runs: list[dict[str, Any]]) -> str:
    """A row for each way, a column for each kind of layer."""
    own = [run for run in runs if run["budget"] == BUDGET]
    kinds = list(dict.fromkeys(kind for run in own for kind in run["errors"]))
    rows = [
        [run["way"], *(f"{run['errors'][k]:.3f}" if k in run["errors"] else "–" for k in kinds)]
        for run in own
    ]
    return markdown_table(["way", *kinds], rows)


def main() -> None:
    record = json.loads((HERE / "pretrained.json").read_text(encoding="utf-8"))
    template = (HERE / "pretrained.template.md").read_text(encoding="utf-8")
    text = template.format(
        table=runs_table(record["runs"]),
        kinds=kinds_table(record["runs"]),
        budget=f"{BUDGET:.0%}",
        machine=record["machine"],
        reading=record["reading"],
    )
    (HERE / "pretrained.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
