"""Write docs/performance.md: one layer followed from network to source to roofline.

python docs/build_performance.py        (some seconds; on an idle machine)
"""

from __future__ import annotations

from pathlib import Path

import threadpoolctl
import torch

import tncompiler as tnc
from benchmarks.cases import load_cases, select
from benchmarks.floor import measure_rates
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem
from benchmarks.profile import HEADS, Statement, profile, table_rows

CELL = "ttm-1024-r8/b256/float32/step"
PAGE = Path(__file__).parent / "performance.md"


def markdown_table(statements: list[Statement]) -> str:
    rows = [HEADS, ("---",) * 2 + ("--:",) * (len(HEADS) - 2), *table_rows(statements)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '·') for cell in row)} |" for row in rows)


def main() -> None:
    """Profile the cell and write the page."""
    (cell,) = (c for c in select(load_cases(), "all", "*") if c.id == CELL)
    with threadpoolctl.threadpool_limits(1):
        statements = profile(cell)
        rates = measure_rates(("float32",))
        f = tnc.compile(expression(build_problem(cell)), framework="numpy", dtype="float32")
        source = f.source()
    torch.set_num_threads(2)
    module = tnc.compile(expression(build_problem(cell)), backend="numpy", dtype="float32")
    lanes = module.source(part="backward")
    large = [s for s in statements if s.us > 0.02 * sum(one.us for one in statements)]
    flops, us = (sum(getattr(s, k) for s in statements) for k in ("flops", "us"))
    template = (Path(__file__).parent / "performance.template.md").read_text()
    PAGE.write_text(
        template.format(
            cell=CELL,
            source=source,
            lanes=lanes,
            table=markdown_table(large),
            small=f"{sum(s.us for s in statements) - sum(s.us for s in large):.0f}",
            total=f"{us:.0f}",
            rate=f"{rates.flops_per_s['float32'] / 1e9:.0f}",
            attained=f"{flops / us / 1e3:.0f}",
            share=f"{flops / us * 1e6 / rates.flops_per_s['float32']:.2f}",
            predicted=f"{sum(s.predicted_us for s in statements):.0f}",
        )
    )


if __name__ == "__main__":
    main()
