"""Write docs/planning.md, its data and its pictures from a run of `make bench-plan`.

    make bench-plan
    .venv/bin/python docs/build_planning.py [bench-output]

docs/planning.json is the run without its single trees. The page is a list of sections, each a
function of the run: to add one, write it and put it into SECTIONS.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
DATA = HERE / "planning.json"
BACKENDS = {"numpy": "NumPy", "torch": "torch"}
Record = Mapping[str, Any]
Rows = list[dict[str, Any]]

HEAD = """# Planning by time

How well predicted times order the trees of a network, what choosing by them costs and gains, and
how few flops the search finds. `make bench-plan` runs it again (`ARGS="--quick"`: three minutes).
This page is written by `docs/build_planning.py`; do not edit it by hand.
"""

MODEL = """## The model

A step takes its start, the larger of arithmetic and traffic, and memory for its result:

- a matrix product: a table of measured times over batch, M, N and K (factors of 4 from 1 to 1024),
  read between its points on logarithmic scales, the way round in which the product is computed; or
  its bytes at the rate of a pass over arrays of that size, if that takes longer;
- a permuting copy: its bytes at a rate that depends on the length of its innermost runs, and on
  whether they lay together before;
- a map: a pass over memory, or the time of the function;
- a result beyond 32 MiB: page faults, since the allocator gives such memory back after every call.

A training step is the program of forward and backward pass together. Candidates come from exact
search by several objectives (or, for large networks, from random greedy search whose parts are
searched exactly), from contracting all parameters first, and from exchanging neighbours in the
best of these. A formula over labels ranks them; the best few are scheduled with their adjoint and
layouts, and the fastest program wins. `tnc.calibrate()` measures the table of your machine in
a minute or so, with all threads of each library and with one; the committed `reference` is one core
of the machine below, and the tables `a100`,
`h100`, `b200` and `mi300x` hold published figures, each with its source.
"""


def main(directory: Path) -> None:
    record = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    PICTURES.mkdir(exist_ok=True)
    for part in ("forward", "step", "memory", "families"):
        shutil.copyfile(directory / f"plan_{part}.png", PICTURES / f"plan_{part}.png")
    slim = {key: value for key, value in record.items() if key != "races"}
    DATA.write_text(json.dumps(slim, allow_nan=False) + "\n", encoding="utf-8")
    text = "\n".join(section for make in SECTIONS if (section := make(record)))
    (HERE / "planning.md").write_text(text, encoding="utf-8")


def machine(record: Record) -> str:
    facts = record["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v != "not installed")
    return (
        f"Run of {facts['date'][:10]} at commit `{facts['commit']}`: {facts['cpu']}, "
        f"{facts['threads']} of {facts['cores']} cores, load {facts['load_1min']} (others were at "
        f"work, so processor time is what counts); rates `{record['rates']['name']}`. "
        f"{versions}.\n"
    )


def promises(record: Record) -> str:
    rows = [
        (
            f"{BACKENDS[row['backend']]}, {row['part']}",
            f"{row['networks']} ({row['ranked']})",
            *(_number(row[key]) for key in ("spearman", "least_spearman", "regret", "regret_95")),
            *(_number(row[key]) for key in ("flops_regret", "flops_regret_95")),
        )
        for row in record["summary"]
    ]
    head = (
        "",
        "networks (ranked)",
        "median ρ, ≥ 0.8",
        "least ρ",
        "median regret, ≤ 1.05",
        "95 %, ≤ 1.25",
        "by flops alone",
        "95 %",
    )
    return (
        "## What is promised, and found\n\n"
        "ρ is Spearman's rank correlation of predicted and measured time over the trees of a "
        "network, where there are 12 or more that span 3 times. Regret is the measured time of the "
        "tree that the planner chooses over that of the best tree measured.\n\n"
        f"{_table(head, rows)}"
    )


def scatter(record: Record) -> str:
    return (
        "## Predicted and measured\n\n"
        "A point is a tree, a star the planner's choice.\n\n"
        "![forward](pictures/plan_forward.png)\n\n![training step](pictures/plan_step.png)\n"
    )


def networks(record: Record) -> str:
    keys = [(backend, part) for backend in BACKENDS for part in ("forward", "step")]
    rows = []
    for name, own in _by_network(record["scores"]).items():
        found = {(s["backend"], s["part"]): s for s in own}
        cells = [name, str(own[0]["trees"])]
        for key in keys:
            s = found[key]
            regret = f"{_bold(s['regret'], s['regret'] > 1.25)} ({s['flops_regret']:.2f})"
            cells += [f"{s['span']:.0f}×", _number(s["spearman"]), regret]
        rows.append(tuple(cells))
    head = ["network", "trees"]
    for backend, part in keys:
        head += [f"{BACKENDS[backend]} {part}: span", "ρ", "regret (flops)"]
    return f"## Network by network\n\n{_table(head, rows)}"


def training(record: Record) -> str:
    rows = []
    for name, own in _by_network(record["gains"]).items():
        cells = [name]
        for minimize in ("flops", "time"):
            numpy, torch = (g for g in own if g["minimize"] == minimize)
            values = (numpy["flops"], numpy["predicted"], numpy["measured"], torch["measured"])
            cells += [f"{value:.2f}" for value in values]
        rows.append(tuple(cells))
    means = []
    for minimize in ("flops", "time"):
        for backend in BACKENDS:
            own = [
                g for g in record["gains"] if (g["minimize"], g["backend"]) == (minimize, backend)
            ]
            mean = math.exp(sum(math.log(g["measured"]) for g in own) / len(own))
            means.append(f"{mean:.2f} ({minimize}, {BACKENDS[backend]})")
    head = ["network"]
    for minimize in ("flops", "time"):
        head += [f"forward {minimize}: flops", "predicted", "NumPy", "torch"]
    return (
        "## Training steps: the order for the step against a reversed forward order\n\n"
        "Today's practice chooses an order for the forward pass, by flops, and reverses it. Each "
        "cell is that step over ours, which is chosen for forward and backward together: flops, "
        "predicted time, measured time. Above 1 we gain. To the right the same with the forward "
        "order chosen by time.\n\n"
        f"Geometric means of measured time: {', '.join(means)}.\n\n{_table(head, rows)}"
    )


def flops(record: Record) -> str:
    rows, equal = [], []
    for name, own in _by_network(record["flops"]).items():
        ratios = [duel["cotengra"] / duel["ours"] for duel in own]
        if max(abs(ratio - 1) for ratio in ratios) < 5e-4:
            equal.append(name)
            continue
        least = _bold(min(ratios), min(ratios) < 1)
        ours = min(duel["ours"] for duel in own)
        rows.append((name, f"{ours:.4g}", least, f"{max(ratios):.3f}"))
    above = sum(duel["ours"] > duel["cotengra"] * (1 + 1e-9) for duel in record["flops"])
    head = ("network", "multiplications, ours", "cotengra / ours, least", "most")
    return (
        '## `minimize="flops"` beside cotengra\'s default\n\n'
        "At equal trials and seed, three seeds, by cotengra's own count. Ours is above cotengra's "
        f"in {above} of {len(record['flops'])} searches. Equal: {', '.join(equal)}.\n\n"
        f"{_table(head, rows)}"
    )


def memory(record: Record) -> str:
    rows = [
        (
            "none" if point["limit"] is None else f"{point['limit'] / 2**20:.1f}",
            f"{point['predicted_bytes'] / 2**20:.1f}",
            f"{point['measured_bytes'] / 2**20:.1f}",
            f"{point['predicted_us'] / 1e3:.0f}",
            f"{point['measured_us'] / 1e3:.0f}",
            str(point["saved"]),
            str(point["recomputed"]),
            ", ".join(point["sliced"]) or "–",
        )
        for point in record["memory"]
    ]
    head = (
        *("limit, MiB", "predicted peak", "NumPy's peak", "predicted ms", "measured ms"),
        *("saved", "made again", "sliced"),
    )
    return (
        "## Memory against time\n\n"
        "A training step of a TT-matrix layer 768→3072 (rank 16, bias, gelu, batch 2048), from no "
        "limit down to the smallest that the planner can keep. Outputs and gradients alone take "
        "most of the last; a limit below it raises an error that names it. Peaks are of computed "
        "values; NumPy's are what tracemalloc sees.\n\n"
        "![peak against time](pictures/plan_memory.png)\n\n"
        f"{_table(head, rows)}"
    )


def families(record: Record) -> str:
    rows = [
        (m["layer"], f"{m['low']:,} to {m['high']:,}", f"`{m['path']}`") for m in record["families"]
    ]
    return (
        "## Plan families\n\n"
        "The training plans that a layer runs by its batch size, from `tnc.plan_family`; vertical "
        "lines are the crossovers.\n\n![families](pictures/plan_families.png)\n\n"
        f"{_table(('layer', 'batch', 'order'), rows)}"
    )


def skipped(record: Record) -> str:
    names = ", ".join(record["skipped"])
    return f"## Not run\n\nThe time was used up before {names}.\n" if names else ""


SECTIONS: tuple[Callable[[Record], str], ...] = (
    lambda record: HEAD,
    machine,
    lambda record: MODEL,
    promises,
    scatter,
    networks,
    training,
    flops,
    memory,
    families,
    skipped,
)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---", *["--:"] * (len(names) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _by_network(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["network"], []).append(row)
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _bold(value: float, yes: bool) -> str:
    return f"**{value:.2f}**" if yes else f"{value:.2f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("bench-output"))
