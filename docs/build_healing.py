"""Write docs/healing.md from its template and docs/healing.json.

python examples/compression/healing.py --out demo-output    (an hour)
python docs/build_healing.py demo-output
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEALINGS = {"none": "not healed", "feature": "by slices", "output": "as a whole"}
HEALED = ("seeds", "least", "seconds")  # columns after the cosine of what was healed
PICTURES = {"healing.png": "healing.png", "search-plain.png": "healing_search.png"}


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    rules = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rules, *rows))


def results_table(records: list[dict[str, Any]]) -> str:
    """A row for each way and budget; seeds side by side, in the order of the column of seeds."""
    heads = ["way", "budget", "kept"]
    for healing, shown in HEALINGS.items():
        heads += [shown, "least", "seconds"] if healing == "none" else [shown, *HEALED]
    rows = []
    for budget in sorted({r["budget"] for r in records}):
        for way in dict.fromkeys(r["way"] for r in records):
            own = [r for r in records if (r["way"], r["budget"]) == (way, budget)]
            if not own:
                continue
            row = [way, f"{budget:.0%}", f"{own[0]['kept']:.1%}"]
            for healing in HEALINGS:
                row += _cells([r for r in own if r["healing"] == healing], healing != "none")
            rows.append(row)
    return markdown_table(heads, rows)


def _cells(own: list[dict[str, Any]], seeded: bool) -> list[str]:
    """Cosine, seeds where something is random, least and seconds; dashes for what never ran."""
    own = sorted(own, key=lambda r: r["seed"])
    shown = [[f"{r['cosine']:.3f}" for r in own]]
    shown += [[str(r["seed"]) for r in own]] if seeded else []
    shown += [[f"{r['least']:.2f}" for r in own], [f"{r['seconds']:.0f}" for r in own]]
    return [", ".join(each) or "–" for each in shown]


def formats_table(records: list[dict[str, Any]]) -> str:
    """A row for each search, a column for each kind of layer."""
    own = [r for r in records if r["way"].startswith("search") and r["healing"] == "none"]
    kinds = list(dict.fromkeys(kind for r in own for kind in r["formats"]))
    rows = []
    for r in own:
        counts = [r["formats"].get(kind, {}) for kind in kinds]
        shown = [", ".join(f"{n} {name}" for name, n in count.items()) for count in counts]
        rows.append([f"{r['way']}, {r['budget']:.0%}", *shown])
    return markdown_table(["search", *kinds], rows)


def take(out: Path) -> None:
    """Copy what the example wrote; texts that were there stay."""
    path = HERE / "healing.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"reading": ""}
    lines = (out / "healing.jsonl").read_text(encoding="utf-8").splitlines()
    known["runs"] = [json.loads(line) for line in lines]
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for source, target in PICTURES.items():
        shutil.copyfile(out / source, HERE / "pictures" / target)


def main() -> None:
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    record = json.loads((HERE / "healing.json").read_text(encoding="utf-8"))
    template = (HERE / "healing.template.md").read_text(encoding="utf-8")
    text = template.format(
        table=results_table(record["runs"]),
        formats=formats_table(record["runs"]),
        reading=record["reading"],
        tested=record.get("tested", 256),
        steps=record.get("steps", 50),
        batch=record.get("batch", 8),
    )
    (HERE / "healing.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
