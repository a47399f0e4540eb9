"""What share of the floor any code on BLAS can reach: the products of each cell, and nothing else.

    python -m benchmarks.attainable [docs/benchmarks.json]

A cell's floor is its fewest flops at the rate of a large product. Here every matrix product of its
program is timed alone: contiguous arrays that are in the cache if they fit, memory that is there,
no copies, no bias, no call around, with NumPy's BLAS or torch's, whichever is faster. Their sum is
what is left of the floor's promise when everything else costs nothing, and of what is promised
against the best peer. Products of shapes that occur several times count each time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import tncompiler as tnc
from benchmarks.cases import Cell, load_cases, select
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem
from benchmarks.record import FAR
from tncompiler.ir.matmul import is_product, matmul_form
from tncompiler.ir.program import Contract, Program, label_sizes, operand_values
from tncompiler.ir.sizes import evaluate

Shape = tuple[int, int, int, int, str]  # batch, rows, columns, terms, dtype
TIMES, LEAST_S = 7, 0.002
COLUMNS = (
    ("floor", "products"),
    ("products", "ours"),
    ("floor", "ours"),
    ("peer", "products"),
    ("peer", "ours"),
)


def products(cell: Cell) -> Counter[Shape]:
    """The matrix products of a cell's program, forward and for a step backward."""
    problem = build_problem(cell)
    names = [o.name for o in problem.inputs]
    made = tnc.compile(expression(problem), inputs=names, dtype=cell.dtype).compilation
    dtypes = made.default_dtypes(cell.dtype)
    if cell.part == "forward":
        return Counter(_shapes(made.inference(dtypes, {}).fitted.program))
    step = made.training(dtypes, {}, tuple(leaf.name for leaf in made.ordered))
    return Counter([*_shapes(step.forward), *_shapes(step.backward)])


def _shapes(program: Program) -> Iterator[Shape]:
    for step in program.steps:
        op, operands = step.op, operand_values(program, step)
        if not isinstance(op, Contract) or len(op.inputs) != 2:
            continue
        sizes = {k: evaluate(n, {}) for k, n in label_sizes(op, operands, step.out).items()}
        if is_product(op, sizes, step.out.dtype):
            form = matmul_form(op, sizes, stacks=True)
            groups = ((*form.outer, *form.batch), form.m, form.n, form.k)
            batch, m, n, k = (math.prod(sizes[label] for label in group) for group in groups)
            yield batch, m, n, k, step.out.dtype


@cache
def product_s(shape: Shape) -> float:
    """Seconds of one product, the least seen of both libraries."""
    batch, m, n, k, dtype = shape
    rng = np.random.default_rng(0)
    sides = ((m, k), (k, n)) if batch == 1 else ((batch, m, k), (batch, k, n))
    a, b = (rng.standard_normal(side).astype(dtype) for side in sides)
    out = a @ b
    x, y, z = map(torch.from_numpy, (a, b, out))
    runs: list[Callable[[], object]] = [
        lambda: np.matmul(a, b, out=out),
        lambda: torch.matmul(x, y, out=z),
    ]
    return min(map(_least_s, runs))


def _least_s(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    run()
    count = max(1, int(LEAST_S / max(time.perf_counter() - start, 1e-7)))
    best = math.inf
    for _ in range(TIMES):
        start = time.perf_counter()
        for _ in range(count):
            run()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attainable",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/benchmarks.json"))
    record = json.loads(parser.parse_args(arguments).results.read_text(encoding="utf-8"))
    measured = {cell["id"]: cell for cell in record["cells"]}
    known = [c for c in select(load_cases(), "all", "*") if c.id in measured]
    table = Table("cell", *(f"{a} / {b}" for a, b in COLUMNS))
    shares: dict[str, list[tuple[float, float]]] = {"forward": [], "step": []}
    gains: dict[str, list[tuple[float, float]]] = {"forward": [], "step": []}
    for cell in tqdm(known, desc="cells", leave=False):
        counted = products(cell)
        least = 1e3 * sum(n * product_s(shape) for shape, n in counted.items())
        found = measured[cell.id]
        if not counted or found["floor"]["flops"] <= 0 or found["floor_fraction"] is None:
            continue
        floor, share = found["floor"]["time_ms"], found["floor_fraction"]
        times = {"floor": floor, "products": least, "ours": floor / share}
        times["peer"] = found["ratio"] * times["ours"] if found["ratio"] else math.nan
        shares[cell.part].append((floor / least, share))
        if times["peer"] >= FAR * floor:
            gains[cell.part].append((times["peer"] / least, found["ratio"]))
        table.add_row(cell.id, *(f"{times[a] / times[b]:.2f}" for a, b in COLUMNS))
    console = Console(width=100)
    console.print(table)
    for part, pairs in shares.items():
        reached, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
        console.print(
            f"{part}: products alone reach {reached:.2f} of the floor in the median of "
            f"{len(pairs)} cells, ours {ours:.2f}"
        )
    for part, pairs in gains.items():
        reached, ours = (statistics.geometric_mean(side) for side in zip(*pairs, strict=True))
        console.print(
            f"{part}: products alone are {reached:.2f} times as fast as the best peer in the "
            f"geometric mean of {len(pairs)} cells, ours {ours:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
