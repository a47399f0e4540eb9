"""Time compiled networks against torch.einsum and the dense layer, interleaved in one process.

    python -m benchmarks.run [--repeats N] [--batch B ...] [--out bench-output]

Prints one table (medians, spread, ratios) and writes it as JSON. The machine may be shared: read
the ratios of one run, not milliseconds of two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import tncompiler as tnc

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A tensorized linear map: its equation for einsum, and the sizes of its letters."""

    name: str
    equation: str
    sizes: dict[str, int]

    @property
    def terms(self) -> tuple[list[str], str]:
        inputs, output = self.equation.split("->")
        return inputs.split(","), output


CASES = (
    Case("TT-matrix 28·28→16·16 r8", "bij,ior,rjp->bop", dict(i=28, j=28, o=16, p=16, r=8)),
    Case(
        "TT-matrix (8,8,12)→(8,16,24) r16",
        "bijk,ior,rjps,skq->bopq",
        dict(i=8, j=8, k=12, o=8, p=16, q=24, r=16, s=16),
    ),
    Case("CP 16·16→16·16 r32", "bij,ir,jr,or,pr->bop", dict(i=16, j=16, o=16, p=16, r=32)),
    Case(
        "Tucker 16·16→16·16 r8",
        "bij,iu,jv,uvwz,ow,pz->bop",
        dict(i=16, j=16, o=16, p=16, u=8, v=8, w=8, z=8),
    ),
    Case("ring 8·8→8·8 r8", "bij,tiou,ujpt->bop", dict(i=8, j=8, o=8, p=8, t=8, u=8)),
)


def _expression(case: Case) -> tuple[tnc.ir.expressions.Expr, list[str]]:
    terms, output = case.terms
    index = {letter: tnc.Index(letter, case.sizes.get(letter)) for letter in set("".join(terms))}
    x = tnc.input("x", *(index[letter] for letter in terms[0]))
    cores = [
        tnc.param(f"G{k}", *(index[letter] for letter in term))
        for k, term in enumerate(terms[1:], start=1)
    ]
    out = [index[letter] for letter in output]
    return tnc.contract(x, *cores, out=out), [core.name for core in cores]


def _contestants(case: Case, batch: int) -> dict[str, Step]:
    """A training step of each contestant on the same data and cores."""
    expression, names = _expression(case)
    terms, output = case.terms
    sizes = {**case.sizes, "b": batch}
    x = torch.randn([sizes[letter] for letter in terms[0]])
    steps: dict[str, Step] = {}
    for backend in ("auto", "numpy", "torch"):
        module = tnc.compile(expression, backend=backend, seed=0)
        steps[f"ours {backend}"] = _step(module, list(module.parameters()), x)
    cores = [getattr(module, name).detach().clone().requires_grad_() for name in names]
    steps["torch.einsum"] = _step(lambda t: torch.einsum(case.equation, t, *cores), cores, x)
    inputs = [sizes[k] for k in terms[0][1:]]
    outputs = [sizes[k] for k in output[1:]]
    dense = torch.nn.Linear(_product(inputs), _product(outputs), bias=False)
    flat = x.reshape(batch, -1)
    steps["dense layer"] = _step(dense, list(dense.parameters()), flat)
    return steps


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _step(run: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> Step:
    def step() -> object:
        for parameter in parameters:
            parameter.grad = None
        return run(x).square().sum().backward()  # type: ignore[no-untyped-call]

    return step


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant, one run of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    """Run all cases at all batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    table = Table(title="training step, median ms (min to max)")
    rows = []
    for case in tqdm(CASES, desc="cases"):
        for batch in options.batch:
            torch.manual_seed(0)
            times = measure(_contestants(case, batch), options.repeats)
            rows.append({"case": case.name, "batch": batch, "ms": times})
    names = list(rows[0]["ms"])
    for column in ("case", "batch", *names, "einsum / ours auto"):
        table.add_column(column)
    for row in rows:
        medians = {name: statistics.median(values) for name, values in row["ms"].items()}
        cells = [
            f"{medians[n]:.2f} ({min(row['ms'][n]):.2f}–{max(row['ms'][n]):.2f})" for n in names
        ]
        ratio = medians["torch.einsum"] / medians["ours auto"]
        table.add_row(row["case"], str(row["batch"]), *cells, f"{ratio:.2f}")
    Console().print(table)
    options.out.mkdir(exist_ok=True)
    (options.out / "training-step.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
