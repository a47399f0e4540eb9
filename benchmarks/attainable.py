"""What share of the floor any code on BLAS can reach: the products of each cell, and nothing else.

    python -m benchmarks.attainable [docs/benchmarks.json] [--calibrate] [--case GLOB]

A cell's floor is its fewest flops at the rate of a large product. Here the matrix products of its
program run one after the other, as they do in a call, into memory that is at hand: by NumPy, by
torch, and each by the library that is faster for its shape, of which the fastest counts. All else
is left out: operands lie as BLAS likes them, results are read as if every copy, bias and map cost
nothing. A step is an autograd function that does this, forward and backward, and gives back what is
there already. It is timed in turn with ours, so that a machine that is slower now than when the
record was made is so for both.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import tncompiler as tnc
from benchmarks.cases import Cell, load_cases, select
from benchmarks.measure import THREADS_SETTLE_S, time_in_turn
from benchmarks.peers import HEADLINE, load_peer
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem, draw_arrays
from benchmarks.record import FAR
from tncompiler.distributed.heap import keep_freed_memory
from tncompiler.ir.matmul import is_product, matmul_form
from tncompiler.ir.program import Contract, Program, label_sizes, operand_values
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.memory import is_view

Shape = tuple[int, int, int, int, str]  # batch, rows, columns, terms, dtype
Call = Callable[[], object]
TIMES, LEAST_S = 7, 0.002
BUDGET_S = 4.0  # of timing one cell
COLUMNS = (
    ("floor", "products"),
    ("products", "ours"),
    ("floor", "ours"),
    ("peer", "products"),
    ("peer", "ours"),
)


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product, and the names of the values that it reads and makes."""

    shape: Shape
    operands: tuple[str, str]
    out: str


def programs(cell: Cell) -> list[tuple[Program, ...]]:
    """The programs that a cell may run as: of NumPy's and torch's plans, for a step one pair."""
    problem = build_problem(cell)
    names = [o.name for o in problem.inputs]
    framework = "numpy" if cell.part == "forward" else "torch"
    made = tnc.compile(expression(problem), inputs=names, framework=framework, dtype=cell.dtype)
    compilation = made.compilation
    dtypes = compilation.default_dtypes(cell.dtype)
    if cell.part == "step":
        step = compilation.training(dtypes, {}, tuple(leaf.name for leaf in compilation.ordered))
        return [(step.forward, step.backward)]
    found = []
    for plan in (compilation, compilation.led_by("torch")):
        kept = plan.kept(dtypes, {})
        found.append((plan.inference(dtypes, {}).fitted.program if kept is None else kept.rest,))
    return found


def products(parts: Sequence[Program]) -> list[list[Product]]:
    """The matrix products of programs that follow each other; what a copy, a map or a view makes
    goes by the name of what it is made of."""
    same: dict[str, str] = {}
    return [list(_products(program, same)) for program in parts]


def _products(program: Program, same: dict[str, str]) -> Iterator[Product]:
    for step in program.steps:
        op, operands = step.op, operand_values(program, step)
        read = [same.get(name, name) for name in step.operands]
        if isinstance(op, Contract) and len(op.inputs) == 2:
            sizes = {k: evaluate(n, {}) for k, n in label_sizes(op, operands, step.out).items()}
            if is_product(op, sizes, step.out.dtype):
                form = matmul_form(op, sizes, stacks=True)
                groups = ((*form.outer, *form.batch), form.m, form.n, form.k)
                batch, m, n, k = (math.prod(sizes[label] for label in group) for group in groups)
                shape = (batch, m, n, k, step.out.dtype)
                yield Product(shape, (read[0], read[1]), step.out.name)
                continue
        if read and (is_view(step) or _numbers(operands[0]) == _numbers(step.out)):
            same[step.out.name] = read[0]


def _numbers(value: Any) -> int:
    return math.prod(evaluate(size, {}) for size in value.shape)


@cache
def library_of(shape: Shape) -> str:
    """The library whose product of the shape is faster when all is in the cache."""
    a, b, out = _arrays(shape)
    return min(("numpy", "torch"), key=lambda name: _least_s(_product(name, a, b, out)))


def _arrays(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch, m, n, k, dtype = shape
    sides = ((batch, m, k), (batch, k, n), (batch, m, n))
    a, b, out = (np.ones(side[batch == 1 :], dtype) for side in sides)
    return a, b, out


def _product(library: str, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Call:
    if library == "numpy":
        return lambda: np.matmul(a, b, out=out)
    x, y, z = map(torch.from_numpy, (a, b, out))
    multiply: Any = torch.mm if a.ndim == 2 else torch.bmm
    return lambda: multiply(x, y, out=z)


def calls(found: Sequence[Product], library: str) -> list[Call]:
    """The products as calls of a library, "" for the faster one of each. Memory of results that
    nobody reads again is written again."""
    last = {name: number for number, one in enumerate(found) for name in one.operands}
    held: dict[str, np.ndarray] = {}  # by value, its bytes
    free: dict[int, list[np.ndarray]] = {}
    own_names: set[str] = set()
    made = []
    for number, one in enumerate(found):
        a, b, out = _arrays(one.shape)
        given = [_seen(held, name, side) for name, side in zip(one.operands, (a, b), strict=True)]
        left = free.get(out.nbytes)
        own = held[one.out] = left.pop() if left else _bytes(out)
        target = own.view(out.dtype).reshape(out.shape)
        made.append(_product(library or library_of(one.shape), *given, target))
        for name in own_names.intersection(one.operands):
            if last[name] == number:
                free.setdefault(held[name].nbytes, []).append(held[name])
        own_names.add(one.out)
    return made


def _seen(held: dict[str, np.ndarray], name: str, side: np.ndarray) -> np.ndarray:
    """A value in the shape of a product's side; other numbers where it has more or fewer, as a
    stack and its members have."""
    if name in held and held[name].nbytes != side.nbytes:
        name = f"{name}: {side.nbytes}"
    return held.setdefault(name, _bytes(side)).view(side.dtype).reshape(side.shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _least_s(run: Call) -> float:
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


class _Products(torch.autograd.Function):
    """Forward some calls, backward others; the tensors given back are there already."""

    @staticmethod
    def forward(result: torch.Tensor, there: Any, back: Any, grads: Any, *leaves: Any) -> Any:
        for run in there:
            run()
        return result.view_as(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.back, ctx.grads = inputs[2:4]

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        for run in ctx.back:
            run()
        # views of their own, which autograd keeps as gradients where it would copy what is ours
        return (None, None, None, None, *(grad.detach() for grad in ctx.grads))


def contestants(cell: Cell) -> dict[str, Call]:
    """The products of a cell's programs alone: by NumPy, by torch, each by the faster."""
    runs: dict[str, Call] = {}
    for number, parts in enumerate(programs(cell)):
        found = products(parts)
        if not any(found):
            continue
        for library in ("numpy", "torch", ""):
            made = calls([one for part in found for one in part], library)
            there, back = made[: len(found[0])], made[len(found[0]) :]
            name = f"plan {number}, {library or 'mixed'}"
            runs[name] = _step(cell, there, back) if cell.part == "step" else _all(made)
    return runs


def _all(made: Sequence[Call]) -> Call:
    def run() -> None:
        for one in made:
            one()

    return run


def _step(cell: Cell, there: Sequence[Call], back: Sequence[Call]) -> Call:
    problem = build_problem(cell)
    arrays = draw_arrays(problem)
    leaves = [torch.tensor(arrays.operands[name]).requires_grad_() for name in problem.gradients]
    grads = [leaf.detach().clone() for leaf in leaves]
    cotangent = torch.tensor(arrays.cotangent)
    result = torch.zeros_like(cotangent)

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        value = _Products.apply(result, there, back, grads, *leaves)  # type: ignore[no-untyped-call]
        value.backward(cotangent)

    return run


def times_of(cell: Cell, budget_s: float = BUDGET_S) -> tuple[float, float] | None:
    """The least milliseconds seen of a cell's products, and of ours; None if it has no products."""
    runs = contestants(cell)
    if not runs:
        return None
    problem = build_problem(cell)
    ours = load_peer(HEADLINE[cell.part]).prepare(problem, draw_arrays(problem)).run
    timings = time_in_turn({"ours": ours, **runs}, budget_s, settle_s=THREADS_SETTLE_S)
    least = {name: min(timing.samples_ms) for name, timing in timings.items()}
    return min(least[name] for name in runs), least["ours"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attainable",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/benchmarks.json"))
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first")
    parser.add_argument("--case", default="*", metavar="GLOB", help="ids of cases or of cells")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as in the bench
    if options.calibrate:
        tnc.calibrate()
    record = json.loads(options.results.read_text(encoding="utf-8"))
    measured = {cell["id"]: cell for cell in record["cells"]}
    known = [c for c in select(load_cases(), "all", options.case) if c.id in measured]
    table = Table("cell", *(f"{a} / {b}" for a, b in COLUMNS))
    table.columns[0].no_wrap = True
    shares: dict[str, list[tuple[float, float]]] = {"forward": [], "step": []}
    gains: dict[str, list[tuple[float, float]]] = {"forward": [], "step": []}
    for cell in tqdm(known, desc="cells", leave=False):
        found = measured[cell.id]
        if found["floor"]["flops"] <= 0 or found["floor_fraction"] is None:
            continue
        if (timed := times_of(cell)) is None:
            continue
        floor, share = found["floor"]["time_ms"], found["floor_fraction"]
        times = {"floor": floor, "ours": floor / share}
        times["products"] = times["ours"] * timed[0] / timed[1]
        times["peer"] = found["ratio"] * times["ours"] if found["ratio"] else math.nan
        shares[cell.part].append((floor / times["products"], share))
        if times["peer"] >= FAR * floor:
            gains[cell.part].append((times["peer"] / times["products"], found["ratio"]))
        table.add_row(cell.id, *(f"{times[a] / times[b]:.2f}" for a, b in COLUMNS))
    console = Console(width=120)
    console.print(table)
    for part, pairs in shares.items():
        if pairs:
            reached, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
            console.print(
                f"{part}: products alone reach {reached:.2f} of the floor in the median of "
                f"{len(pairs)} cells, ours {ours:.2f}"
            )
    for part, pairs in gains.items():
        if pairs:
            reached, ours = (statistics.geometric_mean(side) for side in zip(*pairs, strict=True))
            console.print(
                f"{part}: products alone are {reached:.2f} times as fast as the best peer in the "
                f"geometric mean of {len(pairs)} cells, ours {ours:.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
