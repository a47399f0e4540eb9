"""Write docs/performance.md: one layer followed from network to source to roofline, and what the
profile shows of every cell of docs/benchmarks.json that is slower than its best peer.

python docs/build_performance.py        (a minute or two; on an idle machine)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import threadpoolctl
import torch

import tncompiler as tnc
from benchmarks.cases import load_cases, select
from benchmarks.floor import measure_rates
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem
from benchmarks.profile import HEADS, Statement, profile, table_rows

CELL = "ttm-1024-r8/b256/float32/step"
HERE = Path(__file__).parent
PAGE = HERE / "performance.md"
SHOWN = 70  # characters of a statement
LEAST = 0.95  # of the best peer's speed; cells below are looked into
MISS_HEADS = ("cell", "ratio", "best peer", "slowest statement", "share", "GFLOP/s", "GB/s")


def markdown_table(statements: list[Statement]) -> str:
    return as_markdown([HEADS, ("---",) * 2 + ("--:",) * (len(HEADS) - 2), *table_rows(statements)])


def as_markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table, of which the second says how columns are aligned."""
    return "\n".join(f"| {' | '.join(cell.replace('|', '·') for cell in row)} |" for row in rows)


def misses(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cells of a run that are slower than their best peer, the worst first."""
    slower = [c for c in record["cells"] if c["ratio"] is not None and c["ratio"] < LEAST]
    return sorted(slower, key=lambda cell: cell["ratio"])


def miss_rows(cells: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """What takes most of the time of each cell, in NumPy's code on one thread."""
    known = {cell.id: cell for cell in select(load_cases(), "all", "*")}
    for found in cells:
        statements = profile(known[found["id"]])
        slowest = max(statements, key=lambda one: one.us)
        _, what, us, _, flops, moved, _ = next(table_rows([slowest]))
        share = float(us) / sum(one.us for one in statements)
        comment = what.partition(": ")[2]
        shown = comment if len(comment) <= SHOWN else f"{comment[:SHOWN]}…"
        ratio = f"{found['ratio']:.2f}"
        yield (found["id"], ratio, found["best_peer"], shown, f"{share:.0%}", flops, moved)


def miss_table(record: Mapping[str, Any]) -> str:
    rows = [MISS_HEADS, ("---", "--:", "---", "---", "--:", "--:", "--:")]
    return as_markdown([*rows, *miss_rows(misses(record))])


def main() -> None:
    """Profile the cells and write the page."""
    record = json.loads((HERE / "benchmarks.json").read_text(encoding="utf-8"))
    (cell,) = (c for c in select(load_cases(), "all", "*") if c.id == CELL)
    with threadpoolctl.threadpool_limits(1):
        statements = profile(cell)
        rates = measure_rates(("float32",))
        f = tnc.compile(expression(build_problem(cell)), framework="numpy", dtype="float32")
        source = f.source()
        slower = miss_table(record)
    torch.set_num_threads(2)
    module = tnc.compile(expression(build_problem(cell)), backend="numpy", dtype="float32")
    lanes = module.source(part="backward")
    large = [s for s in statements if s.us > 0.02 * sum(one.us for one in statements)]
    flops, us = (sum(getattr(s, k) for s in statements) for k in ("flops", "us"))
    template = (HERE / "performance.template.md").read_text()
    PAGE.write_text(
        template.format(
            cell=CELL,
            source=source,
            lanes=lanes,
            misses=slower,
            commit=record["machine"]["commit"],
            table=markdown_table(large),
            small=f"{sum(s.us for s in statements) - sum(s.us for s in large):.0f}",
            total=f"{us:.0f}",
            rate=f"{rates.flops_per_s['float32'] / 1e9:.0f}",
            copy=f"{rates.bytes_per_s / 1e9:.0f}",
            attained=f"{flops / us / 1e3:.0f}",
            share=f"{flops / us * 1e6 / rates.flops_per_s['float32']:.2f}",
            predicted=f"{sum(s.predicted_us for s in statements):.0f}",
        )
    )


if __name__ == "__main__":
    main()
