"""Write docs/benchmarks.md, its data and its pictures from a run of the bench.

    make bench
    .venv/bin/python docs/build_benchmarks.py [bench-output]

docs/benchmarks.json is the run without its single samples: what `--against` of a later run takes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
DATA = HERE / "benchmarks.json"
PARTS = {"forward": "Forward", "step": "Training step"}

HEAD = """# Benchmarks

Each case of `benchmarks/cases.toml` with its peers, in one process and in turn; medians with the
distance of the quartiles. The machine is shared: read the ratios of one run, never milliseconds
of two. `make bench` runs it again, `make bench ARGS="--against docs/benchmarks.json"` says what
moved. This page is written by `docs/build_benchmarks.py`; do not edit it by hand.

Environment variables may ask OpenBLAS for the kernels of an older core (`OPENBLAS_CORETYPE`), at
half the speed; the run says which it had. Freed memory stays with the process, for everybody, so
that no call pays for pages that the one before gave back.

- *ratio*: time of the best peer over ours; above 1 we are faster. Below 0.95 is **bold**.
- *floor*: the share of our time that the fewest flops at the machine's measured matrix rate, or
  the bytes at its copy bandwidth, would take.
- *dense*: the dense torch layer of the same sizes, for orientation; it computes something else.
"""


def main(directory: Path) -> None:
    record = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    for cell in record["cells"]:
        for entry in cell["entries"].values():
            entry.pop("samples_ms", None)
    DATA.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name in ("floor", *PARTS):
        shutil.copyfile(directory / f"{name}.png", PICTURES / f"bench_{name}.png")
    parts = [
        HEAD,
        _machine(record),
        "![ours and the best peer over the floor](pictures/bench_floor.png)\n",
    ]
    parts += [_part(part, record) for part in PARTS]
    parts += [_contestants(record["cells"]), _skipped(record["skipped"])]
    (HERE / "benchmarks.md").write_text("\n".join(filter(None, parts)), encoding="utf-8")


def _machine(record: Mapping[str, Any]) -> str:
    facts, rates = record["machine"], record["rates"]
    flops = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates["flops_per_s"].items())
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    return (
        f"Run of {facts['date'][:10]} at commit `{facts['commit']}`: {facts['cpu']}, "
        f"{facts['threads']} of {facts['cores']} cores, {', '.join(facts['blas'])}; {flops}; copy "
        f"{rates['bytes_per_s'] / 1e9:.0f} GB/s read and written.\n\n{versions}.\n"
    )


def _part(part: str, record: Mapping[str, Any]) -> str:
    """The cells of a part and its summary."""
    cells = [cell for cell in record["cells"] if cell["part"] == part]
    if not cells:
        return ""
    found = record["summary"][part]
    rows = "\n".join(_row(cell) for cell in cells)
    return (
        f"## {PARTS[part]}\n\n"
        f"Geometric mean of the ratio {_number(found['mean_ratio'])} over the {found['far']} cells "
        f"whose best peer takes at least two floors, least {_number(found['least_ratio'])}; "
        f"{len(found['slower'])} of {found['cells']} cells below 0.95; "
        f"{len(found['dearer'])} above 1.05 times reconstruct-then-dense; median share of the "
        f"floor {_number(found['median_floor'])}.\n\n"
        "| cell | ours, ms | best peer, ms | | ratio | floor | dense, ms |\n"
        "|---|--:|--:|---|--:|--:|--:|\n"
        f"{rows}\n\n![{part}](pictures/bench_{part}.png)\n"
    )


def _row(cell: Mapping[str, Any]) -> str:
    entries, best = cell["entries"], cell["best_peer"]
    ratio = _number(cell["ratio"])
    if cell["ratio"] is not None and cell["ratio"] < 0.95:
        ratio = f"**{ratio}**"
    times = [_time(entries.get(name)) for name in (cell["headline"], best, "dense layer")]
    name = cell["id"].rpartition("/")[0]
    floor = _number(cell["floor_fraction"])
    return f"| {name} | {times[0]} | {times[1]} | {best or '–'} | {ratio} | {floor} | {times[2]} |"


def _time(entry: Mapping[str, Any] | None) -> str:
    if entry is None or "median_ms" not in entry:
        return (
            "–" if entry is None or entry["state"] in ("declined", "left out") else entry["state"]
        )
    return f"{entry['median_ms']:.3g} ± {entry['spread_ms']:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _contestants(cells: Sequence[Mapping[str, Any]]) -> str:
    """How many cells each contestant was timed on, and the commonest reasons why not."""
    names = dict.fromkeys(name for cell in cells for name in cell["entries"])
    best = Counter(cell["best_peer"] for cell in cells)
    lines = ["## Contestants\n", "| name | timed | best peer | why not |", "|---|--:|--:|---|"]
    for name in names:
        entries = [cell["entries"][name] for cell in cells if name in cell["entries"]]
        timed = sum(entry["state"] == "timed" for entry in entries)
        reasons = Counter(entry["why"] for entry in entries if entry["state"] != "timed")
        why = "; ".join(f"{n}× {text}" for text, n in reasons.most_common(3)).replace("|", "\\|")
        lines.append(f"| {name} | {timed} | {best[name] or ''} | {why} |")
    return "\n".join(lines) + "\n"


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    lines = "\n".join(f"- {name}: {why}" for name, why in skipped.items())
    return f"## Not run\n\n{lines}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("bench-output"))
